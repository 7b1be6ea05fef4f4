-- repair (0, 1), ids -> for each: nil | envelope, place of the body, rows, whether one of them is not parked (0, 1),
-- users of copies, numbers of the rows, findings (kind, where, detail, what was done)
--
-- Compares messages with all indexes. The rows are the truth. After many rows it
-- stops early: the ids that are left have to be asked for again.
local repair = ARGV[1] == '1'
local LANES = { 1, 2, 3, HELD, OPHELD, PARKED, 11, 12, 13 }
local is_lane = { [LEASED] = true }
for _, l in ipairs(LANES) do is_lane[l] = true end

local out, found = {}, nil
local function say(kind, where, detail, done) found[#found + 1] = { kind, where, detail, repair and done or '' } end

local function holds(l, id, n)
  if not l or l[L_ID] ~= id then return false end
  for _, m in ipairs(l[L_NS]) do
    if tostring(m) == n then return true end
  end
  return false
end

-- Where the row stands in fact. Gives whether it has to be filed again.
local function misfiled(id, n, r)
  local rid = id .. ':' .. n
  if not is_lane[r[LANE]] then
    say('BadLane', rid, 'lane ' .. tostring(r[LANE]), 'filed by its user')
    return true
  end
  if r[LANE] == LEASED then
    if holds(get_lease(r[TOKEN]), id, n) then return false end
    say('NoLease', rid, 'lease ' .. tostring(r[TOKEN]), 'queued again')
    return true
  end
  if r[LANE] == OPHELD or r[LANE] == PARKED then return false end
  local lane, w = r[LANE] % BULK, way(r, get_user(r[USER]))
  if lane == w or call('ZSCORE', P .. 'W', r[USER]) then return false end
  say('WrongLane', rid, 'lane ' .. lane .. ', and its user says ' .. w, 'filed by its user')
  return true
end

local function in_order(id, n, r)
  local rid = id .. ':' .. n
  for _, l in ipairs(LANES) do
    local at = call('ZSCORE', P .. 'q:' .. l, rid)
    if l == r[LANE] and tonumber(at or '-1') ~= r[DUE] then
      say('Unindexed', rid, 'lane ' .. l .. ' has it ' .. (at and ('at ' .. at) or 'not'), 'entered')
      if repair then call('ZADD', P .. 'q:' .. l, r[DUE], rid) end
    elseif l ~= r[LANE] and at then
      say('StrayEntry', rid, 'lane ' .. l .. ' has it, and it is in ' .. r[LANE], 'removed')
      if repair then call('ZREM', P .. 'q:' .. l, rid) end
    end
  end
  if r[USER] == '' then return end
  local want = r[GEN]
  if r[LANE] == LEASED then want = S_LEASED end
  if r[LANE] == OPHELD or r[LANE] == PARKED then want = S_FIXED end
  local at = call('ZSCORE', P .. 'u:' .. r[USER], rid)
  if not at or tonumber(at) ~= want then
    say('Unindexed', rid, 'its user has it ' .. (at and ('under ' .. at) or 'not'), 'entered')
    if repair then call('ZADD', P .. 'u:' .. r[USER], want, rid) end
  end
end

local function check_row(id, n, raw, one)
  local good, r = pcall(unpack_, raw)
  if not good or type(r) ~= 'table' or type(r[USER]) ~= 'string' or type(r[TOKEN]) ~= 'string' or not tonumber(r[DUE]) or not tonumber(r[GEN]) then
    say('BadRow', id .. ':' .. n, '', '')
    one[4] = 1
    return
  end
  if misfiled(id, n, r) and repair then
    local u = get_user(r[USER])
    if is_lane[r[LANE]] then unindex(id, n, r) end
    for _, l in ipairs(LANES) do call('ZREM', P .. 'q:' .. l, id .. ':' .. n) end
    fresh(r, u)
    file(id, n, r, u)
  elseif is_lane[r[LANE]] then
    in_order(id, n, r)
  end
  if r[LANE] ~= PARKED then one[4] = 1 end
  if is_counted_copy(r) then table.insert(one[5], r[USER]) end
end

local rows = 0
for i = 2, #ARGV do
  if rows > 2000 then break end
  local id = ARGV[i]
  local m = call('HGETALL', P .. 'm:' .. id)
  found = {}
  local one = { '', '', 0, 0, {}, {}, found }
  for j = 1, #m, 2 do
    if m[j] == 'e' then
      one[1] = m[j + 1]
    elseif m[j] == 's' then
      one[2] = m[j + 1]
    else
      one[3] = one[3] + 1
      rows = rows + 1
      table.insert(one[6], m[j])
      check_row(id, m[j], m[j + 1], one)
    end
  end
  if #m > 0 then
    local at = call('ZSCORE', P .. 'a', id)
    if tonumber(at or '-1') ~= 0 then
      say('Unindexed', id, 'the index of all has it ' .. (at and ('at ' .. at) or 'not'), 'entered')
      if repair then call('ZADD', P .. 'a', 0, id) end
    end
    if call('ZSCORE', P .. 'T', id) then
      say('Tombstone', id, '', 'removed')
      if repair then call('ZREM', P .. 'T', id) end
    end
  end
  out[i - 1] = #m > 0 and one or false
end
return out
