-- t0, user, name, data, remove (0, 1) or only where there is none (2), boot -> OK, or with 2 what is there now
--
-- t0 is Redis' time of the first try: a try that was delayed must not undo what
-- was saved since.
if NOW - tonumber(ARGV[1]) > 40000 then return redis.error_reply('TRYAGAIN the record was delayed on its way') end
-- A node that was stopped while another took its user must not write over what
-- that one has found since.
local owner = string.match(call('HGET', P .. 'o', ARGV[2]) or '', '^%S+')
if owner and owner ~= ARGV[6] and tonumber(call('ZSCORE', P .. 'O', ARGV[2]) or 0) > NOW then
  return redis.error_reply('ERR another node works on this user now')
end
local key = P .. 'e:' .. ARGV[2]
if ARGV[5] == '2' then
  -- Not HSETNX: it would have to be allowed in every ACL that is in use.
  if call('HEXISTS', key, ARGV[3]) == 0 then call('HSET', key, ARGV[3], ARGV[4]) end
  return call('HGET', key, ARGV[3])
end
if ARGV[5] == '1' then call('HDEL', key, ARGV[3]) else call('HSET', key, ARGV[3], ARGV[4]) end
return 'OK'
