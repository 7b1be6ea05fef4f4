-- token, slices, change -> OK
--
-- From here on the import is carried to its end, by another node if need be.
local token, n = ARGV[1], tonumber(ARGV[2])
if call('EXISTS', P .. 'K:' .. token) == 1 then return 'OK' end
if call('LLEN', P .. 'J:' .. token) ~= n then return redis.error_reply('IMPORT its slices are not all there') end
local c = cjson.decode(ARGV[3])
c.a = NOW
local batch = call('HINCRBY', P .. 's', 'batch', 1)
call('HSET', P .. 'I', batch, cjson.encode(c))
call('HSET', P .. 'K:' .. token, 'next', 0, 'batch', batch)
call('PERSIST', P .. 'J:' .. token)
call('ZADD', P .. 'K', NOW, token)
return 'OK'
