-- -> now, then of each node: name, boot, info, beat, since, who drains it,
-- when it left, leases, recipients being sent, users it owns, whether it knows
-- that it is drained
local N_BOOT, N_INFO, N_BEAT, N_SINCE, N_DRAIN, N_LEFT, N_KNOWS = 1, 2, 3, 4, 5, 6, 7
local leases, sending, owned = {}, {}, {}
for _, token in ipairs(call('ZRANGE', P .. 'L', 0, -1)) do
  local l = get_lease(token)
  if l then
    leases[l[L_BOOT]] = (leases[l[L_BOOT]] or 0) + 1
    if l[L_SENDING] == 1 then sending[l[L_BOOT]] = (sending[l[L_BOOT]] or 0) + #l[L_NS] end
  end
end
for _, user in ipairs(call('ZRANGEBYSCORE', P .. 'O', NOW, '+inf')) do
  local boot = string.match(call('HGET', P .. 'o', user) or '', '^%S+')
  if boot then owned[boot] = (owned[boot] or 0) + 1 end
end
local out, all = { NOW }, call('HGETALL', P .. 'n')
for i = 1, #all, 2 do
  local r = unpack_(all[i + 1])
  local b = r[N_BOOT]
  out[#out + 1] = { all[i], b, r[N_INFO], r[N_BEAT], r[N_SINCE], r[N_DRAIN], r[N_LEFT], leases[b] or 0, sending[b] or 0, owned[b] or 0,
    r[N_KNOWS] }
end
return out
