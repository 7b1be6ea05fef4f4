-- t0, user, name, data, remove (0, 1) -> OK
--
-- t0 is Redis' time of the first try: a try that was delayed must not undo what
-- was saved since.
if NOW - tonumber(ARGV[1]) > 40000 then return redis.error_reply('TRYAGAIN the record was delayed on its way') end
local key = P .. 'e:' .. ARGV[2]
if ARGV[5] == '1' then call('HDEL', key, ARGV[3]) else call('HSET', key, ARGV[3], ARGV[4]) end
return 'OK'
