-- -> messages, octets of bodies, queued for old, new and out, held, parked,
-- leased, being sent, the oldest id
local function card(lane) return call('ZCARD', P .. 'q:' .. lane) end
local leased, sending = 0, 0
for _, token in ipairs(call('ZRANGE', P .. 'L', 0, 9999)) do
  local l = get_lease(token)
  if l and l[L_SENDING] == 1 then
    sending = sending + #l[L_NS]
  elseif l then
    leased = leased + #l[L_NS]
  end
end
return { call('ZCARD', P .. 'a'), tonumber(call('HGET', P .. 's', 'bytes') or 0), card(1) + card(11), card(2) + card(12),
  card(3) + card(13), card(HELD) + card(OPHELD), card(PARKED), leased, sending, call('ZRANGE', P .. 'a', 0, 0)[1] or '' }
