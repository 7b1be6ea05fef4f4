-- verb, route, reason, then id, n, the row as it was shown and a line of the journal
-- -> changed | busy | same | stale for each
local verb, route, reason = ARGV[1], tonumber(ARGV[2]), ARGV[3]

local function park(r)
  if r[LANE] == PARKED then return false end
  r[LANE], r[DUE] = PARKED, NOW
  if reason ~= '' then r[REPLY] = reason end
  return true
end

-- Tells whether the row changed, and whether it is to be filed by its way.
local function act(r, u)
  local lane = r[LANE]
  if verb == 'park' then return park(r), false end
  if verb == 'hold' then
    if lane == OPHELD or lane == PARKED then return false end
    r[LANE] = OPHELD
    return true, false
  end
  if verb == 'release' and lane ~= OPHELD then return false end
  if verb == 'retry' then
    if lane == OPHELD or lane ~= PARKED and way(r, u) == HELD then return false end
    r[CRASHES] = 0
  end
  if verb == 'reroute' then
    r[FIXED], r[ATTEMPTS], r[UNKNOWN], r[CRASHES], r[SINCE] = route, 0, 0, 0, NOW
    if lane == OPHELD then return true, false end
  end
  r[DUE] = NOW
  return true, true
end

local function one(id, n, shown, line)
  if call('HGET', P .. 'm:' .. id, n) ~= shown then return 'stale' end
  local r = unpack_(shown)
  if r[LANE] == LEASED then
    local l = get_lease(r[TOKEN])
    if l and l[L_SENDING] == 1 then return 'busy' end
    if l then take_back(r[TOKEN], l) end
    r = get_row(id, n)
  end
  if verb == 'delete' then
    note(line)
    remove(id, n, r)
    return 'changed'
  end
  local u = get_user(r[USER])
  unindex(id, n, r)
  fresh(r, u)
  local changed, by_way = act(r, u)
  if changed then note(line) end
  if by_way then
    file(id, n, r, u)
  else
    index(id, n, r)
    put_row(id, n, r)
  end
  return changed and 'changed' or 'same'
end

local out = {}
for i = 4, #ARGV, 4 do out[#out + 1] = one(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]) end
return out
