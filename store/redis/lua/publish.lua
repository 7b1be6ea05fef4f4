-- user, data, keep ms -> OK
--
-- What a node last said of its work on a user, for the others to show.
call('HSET', P .. 'st', ARGV[1], ARGV[2])
call('ZADD', P .. 'sx', NOW + tonumber(ARGV[3]), ARGV[1])
for _, user in ipairs(call('ZRANGEBYSCORE', P .. 'sx', '-inf', NOW, 'LIMIT', 0, 20)) do
  call('HDEL', P .. 'st', user)
  call('ZREM', P .. 'sx', user)
end
return 'OK'
