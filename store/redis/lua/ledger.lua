-- user, name, data, remove (0, 1) -> OK
local key = P .. 'e:' .. ARGV[1]
if ARGV[4] == '1' then call('HDEL', key, ARGV[2]) else call('HSET', key, ARGV[2], ARGV[3]) end
return 'OK'
