-- stale ms -> leases that run, how long the last of them runs (ms), bulk
-- imports under way, names of nodes that live
local N_BEAT, N_LEFT = 3, 6
local k, last, nodes = 0, NOW, {}
for _, token in ipairs(call('ZRANGEBYSCORE', P .. 'L', '(' .. string.format('%d', NOW), '+inf')) do
  local l = get_lease(token)
  if l then
    k = k + 1
    if l[L_UNTIL] > last then last = l[L_UNTIL] end
  end
end
local all = call('HGETALL', P .. 'n')
for i = 1, #all, 2 do
  local n = unpack_(all[i + 1])
  if n[N_LEFT] == 0 and math.abs(NOW - n[N_BEAT]) < tonumber(ARGV[1]) then nodes[#nodes + 1] = all[i] end
end
return { k, last - NOW, call('ZCARD', P .. 'K'), nodes }
