-- ids -> for each: nil | envelope, place of the body, inline body, row ...
--
-- A row is n, whether it is leased, its fields as they are stored, from lane to
-- reply, and its doubt. The lane is 4 for all that waits: where it does follows.
local out = {}
for i, id in ipairs(ARGV) do
  local m = call('HGETALL', P .. 'm:' .. id)
  local one = { '', '', call('GET', P .. 'i:' .. id) or '' }
  for j = 1, #m, 2 do
    if m[j] == 'e' then
      one[1] = m[j + 1]
    elseif m[j] == 's' then
      one[2] = m[j + 1]
    else
      local r = unpack_(m[j + 1])
      local lane = r[LANE]
      local l = lane == LEASED and get_lease(r[TOKEN])
      if l and l[L_SENDING] == 1 then suspect(r, l, l[L_UNTIL]) end
      if lane ~= OPHELD and lane ~= PARKED then lane = HELD end
      one[#one + 1] = { m[j], r[LANE] == LEASED and 1 or 0, lane, r[DUE], r[USER], r[GEN], r[HINT], r[FIXED], r[COPY], r[ATTEMPTS],
        r[CRASHES], r[SINCE], r[NOTICED], r[UNKNOWN], r[REPLY], r[DOUBT] or '' }
    end
  end
  out[i] = #m > 0 and one or false
end
return out
