-- ids -> for each: nil | envelope, row ...
--
-- A row is n, what it is filed as, due, user, where it would go now, fixed,
-- copy, since, attempts, crashes, unknown, reply, whether it is being sent,
-- the row itself, for apply, and its doubt.
local out = {}
for i, id in ipairs(ARGV) do
  local m = call('HGETALL', P .. 'm:' .. id)
  local one = { '' }
  for j = 1, #m, 2 do
    if m[j] == 'e' then
      one[1] = m[j + 1]
    elseif m[j] ~= 's' then
      local r = unpack_(m[j + 1])
      local u = get_user(r[USER])
      fresh(r, u)
      local l = r[LANE] == LEASED and get_lease(r[TOKEN])
      one[#one + 1] = { m[j], r[LANE], r[DUE], r[USER], way(r, u), r[FIXED], r[COPY], r[SINCE], r[ATTEMPTS],
        r[CRASHES], r[UNKNOWN], r[REPLY], l and l[L_SENDING] or 0, m[j + 1], r[DOUBT] or '' }
    end
  end
  out[i] = #m > 0 and one or false
end
return out
