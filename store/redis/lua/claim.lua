-- node, boot, lane, max leases, max recipients, ttl, token, bulk first (0, 1)
-- -> now, next due (0: nothing waits), lease ...
--
-- A lease is token, id, envelope, until, twelve values of each recipient, and
-- the body where it is small. The tokens are the given one with a number behind
-- it. What is in doubt comes in leases of its own.
local node, boot, lane = ARGV[1], ARGV[2], tonumber(ARGV[3])
local most, rcpts, ttl, base = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local sets = { lane, lane + BULK }
if ARGV[8] == '1' then sets = { lane + BULK, lane } end
local out, budget = { NOW, 0 }, 200

reap(8)
advance(50)

-- What came straight in is due whatever the clock says.
local function head(l)
  if l < BULK then return call('ZRANGE', P .. 'q:' .. l, 0, 0)[1] end
  return call('ZRANGEBYSCORE', P .. 'q:' .. l, '-inf', NOW, 'LIMIT', 0, 1)[1]
end

-- A lease as its worker gets it, with those of its recipients that it holds.
local function describe(token, l)
  local items = {}
  for i, n in ipairs(l[L_NS]) do
    local r = get_row(l[L_ID], n)
    if r and r[TOKEN] == token then
      local u, copy_to = get_user(r[USER]), 0
      if r[COPY] == 0 and u and u[U_COPIES] == 1 and lane ~= 3 then copy_to = 3 - lane end
      items[#items + 1] = { n, r[USER], l[L_EPOCHS][i], r[ATTEMPTS], r[CRASHES], r[SINCE], r[NOTICED], r[UNKNOWN], r[COPY],
        copy_to, r[REPLY], r[DOUBT] or '' }
    end
  end
  local inline = ''
  if call('STRLEN', P .. 'i:' .. l[L_ID]) <= 16384 then inline = call('GET', P .. 'i:' .. l[L_ID]) or '' end
  return { token, l[L_ID], call('HGET', P .. 'm:' .. l[L_ID], 'e'), l[L_UNTIL], items, inline }
end

local function grant(id)
  local m = call('HGETALL', P .. 'm:' .. id)
  local rows = {}
  for i = 1, #m, 2 do
    if m[i] ~= 'e' and m[i] ~= 's' then rows[#rows + 1] = { tonumber(m[i]), unpack_(m[i + 1]) } end
  end
  table.sort(rows, function(a, b) return a[1] < b[1] end)
  local token = base .. '-' .. #out
  local l, doubtful = { node, boot, id, lane, NOW + ttl, 0, {}, {} }, nil
  for _, x in ipairs(rows) do
    local n, r = x[1], x[2]
    if #l[L_NS] < rcpts and (r[LANE] == lane or r[LANE] == lane + BULK and r[DUE] <= NOW) then
      local u = get_user(r[USER])
      fresh(r, u)
      if way(r, u) ~= lane then
        unindex(id, n, r)
        file(id, n, r, u) -- its user went another way
      elseif doubtful == nil or doubtful == (r[DOUBT] ~= nil) then
        doubtful = r[DOUBT] ~= nil
        unindex(id, n, r)
        r[LANE], r[TOKEN] = LEASED, token
        index(id, n, r)
        put_row(id, n, r)
        l[L_NS][#l[L_NS] + 1] = n
        l[L_EPOCHS][#l[L_EPOCHS] + 1] = epoch_of(u)
      end
    end
  end
  if #l[L_NS] == 0 then return nil end
  put_lease(token, l)
  return describe(token, l)
end

-- What a call with the same token was given, when its reply was lost.
while #out - 2 < most do
  local token = base .. '-' .. #out
  local l = get_lease(token)
  if not l then break end
  l[L_UNTIL] = NOW + ttl
  put_lease(token, l)
  out[#out + 1] = describe(token, l)
end
if #out > 2 then return out end

local turn = 1
while #out - 2 < most and budget > 0 do
  budget = budget - 1
  local set = sets[turn]
  local rid = head(set)
  if not rid then
    set = sets[3 - turn]
    rid = head(set)
    if not rid then break end
  end
  turn = 3 - turn
  local id, n = string.match(rid, '^(.-):(%d+)$')
  local r = get_row(id, n)
  if r and r[LANE] == set then
    local lease = grant(id)
    if lease then out[#out + 1] = lease end
  else -- an index without its row: the row's own index has it
    call('ZREM', P .. 'q:' .. set, rid)
  end
end
if budget == 0 then out[2] = NOW end
for _, l in ipairs(sets) do
  local first = call('ZRANGE', P .. 'q:' .. l, 0, 0, 'WITHSCORES')[2]
  if first then
    local at = tonumber(first)
    if out[2] == 0 or at < out[2] then out[2] = at end
  end
end
return out
