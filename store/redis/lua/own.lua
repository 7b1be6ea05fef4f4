-- boot, node, number of the call, ttl, keep (0, 1), user ... -> of each user:
-- how often he was asked about, or -1: somebody else works on him, or, when he
-- was to be kept, has done so
--
-- O has the users on whom there is work, by the time until which they are
-- owned; o their owners, with the number of the call that owned them last: a
-- disown that was delayed must not undo it. Who owns a user already owns him
-- longer.
local boot, number, out = ARGV[1], tonumber(ARGV[3]), {}
for i = 6, #ARGV do
  local user = ARGV[i]
  local other, last = string.match(call('HGET', P .. 'o', user) or '', '^(%S+) (%d+) ')
  if other ~= boot and ARGV[5] == '1' then
    out[#out + 1] = -1
  elseif other and other ~= boot and tonumber(call('ZSCORE', P .. 'O', user) or 0) > NOW then
    out[#out + 1] = -1
  else
    if other == boot then number = math.max(number, tonumber(last)) end
    call('HSET', P .. 'o', user, boot .. ' ' .. string.format('%.0f', number) .. ' ' .. ARGV[2])
    call('ZADD', P .. 'O', NOW + tonumber(ARGV[4]), user)
    out[#out + 1] = tonumber(call('HGET', P .. 'oa', user) or 0)
  end
end
return out
