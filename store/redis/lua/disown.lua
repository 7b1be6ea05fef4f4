-- boot, number of the call, user, done (0, 1), how often he was asked about
-- when the owner last looked -> OK
--
-- Nothing is left to do for a user who is done, unless somebody asked meanwhile.
local user = ARGV[3]
local boot, last = string.match(call('HGET', P .. 'o', user) or '', '^(%S+) (%d+) ')
if boot ~= ARGV[1] or tonumber(last) > tonumber(ARGV[2]) then return 'OK' end
call('HDEL', P .. 'o', user)
if ARGV[4] == '1' and (call('HGET', P .. 'oa', user) or '0') == ARGV[5] then
  call('ZREM', P .. 'O', user)
  call('HDEL', P .. 'oa', user)
else
  call('ZADD', P .. 'O', NOW, user)
end
return 'OK'
