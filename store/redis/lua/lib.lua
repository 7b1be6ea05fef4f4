-- What every script begins with. All keys have the prefix P, which ends in one
-- hash tag, so that a Cluster keeps them in one slot.
--
-- A recipient is a row of m:<id>, and stands in exactly one index: a sorted
-- set of its lane, or a lease. The user's set u:<user> says under which
-- generation of the user's route it was filed.
local P = KEYS[1]
local call = redis.call
local pack, unpack_ = cmsgpack.pack, cmsgpack.unpack

local t_ = call('TIME')
local NOW = t_[1] * 1000 + math.floor(t_[2] / 1000)

-- Lanes 1 old, 2 new, 3 out hold what came straight in; 11, 12, 13 what was
-- retried, released or moved. They take turns, so that neither starves.
local HELD, OPHELD, PARKED, LEASED, BULK = 4, 5, 6, 7, 10

-- Scores in u:<user>; all others are generations.
local S_LEASED, S_FIXED = -1, 9e15

-- Fields of a row. DOUBT is missing, or route, and when it was sent and when that
-- was known in ms: it may have arrived already.
local LANE, DUE, USER, GEN, HINT, FIXED, COPY, ATTEMPTS, CRASHES, SINCE, NOTICED, UNKNOWN, TOKEN, REPLY, DOUBT =
  1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15

-- Fields of a user. WAY is 0 nothing said, 1 old, 2 new, 4 held; COPIES is 1
-- when the other side gets a copy now; EXTRA is JSON, or 1: it is in y:<user>.
-- BATCH is the bulk import that made the user, 0 none.
local U_EPOCH, U_GEN, U_WAY, U_COPIES, U_SINCE, U_STATE, U_KIND, U_BATCH, U_EXTRA = 1, 2, 3, 4, 5, 6, 7, 8, 9

-- Fields of a lease. SENT is when its final dot was permitted.
local L_NODE, L_BOOT, L_ID, L_ROUTE, L_UNTIL, L_SENDING, L_NS, L_EPOCHS, L_SENT = 1, 2, 3, 4, 5, 6, 7, 8, 9

-- Who calls, where a script is told: its own bell is nothing new to a node,
-- which learns from the reply which lanes were filled.
local ME = ''
-- rung are the lanes that need no bell: it rang, or who calls has workers that
-- wait for just this. When he dies before they take it, others look within a
-- second.
local rung, filled = {}, {}
local function ring(lane)
  if not rung[lane] then
    rung[lane] = true
    call('PUBLISH', P .. 'bell', lane .. ' ' .. ME)
  end
end

-- Adds the lanes that were filled to a reply.
local function with_filled(reply)
  for lane = 1, 3 do
    if filled[lane] then reply[#reply + 1] = lane end
  end
  return reply
end

-- Users live in chunks of hashes, in the order of their addresses: a chunk
-- holds the addresses from its name on. A small hash is kept in a compact form.
local CHUNK = 200

local function chunk_of(user)
  local c = call('ZREVRANGEBYLEX', P .. 'A', '[-' .. user, '-', 'LIMIT', 0, 1)[1]
  return c or '-'
end

-- The order of octets, in which Redis keeps names. Lua's own < goes by the locale
-- that redis-server was started with.
local function by_octets(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- Most names of a chunk begin alike: they are compared as numbers made of the
-- octets behind that.
local function sort_by_octets(keys)
  local first, same, number = keys[1], #keys[1], {}
  for _, k in ipairs(keys) do
    while string.sub(k, 1, same) ~= string.sub(first, 1, same) do same = same - 1 end
  end
  for _, k in ipairs(keys) do
    local x = 0
    for i = same + 1, same + 6 do x = x * 257 + (string.byte(k, i) or -1) + 1 end
    number[k] = x
  end
  table.sort(keys, function(a, b)
    local x, y = number[a], number[b]
    if x ~= y then return x < y end
    return by_octets(a, b)
  end)
end

local users_ = {}
local function get_user(user)
  if user == '' then return nil end
  local u = users_[user]
  if u == nil then
    local raw = call('HGET', P .. 'U:' .. chunk_of(user), user)
    u = raw and unpack_(raw) or false
    users_[user] = u
  end
  return u or nil
end

local function count_user(u, by)
  if u and u[U_KIND] == 'mailbox' then
    if call('HINCRBY', P .. 'N', u[U_STATE], by) == 0 then
      call('HDEL', P .. 'N', u[U_STATE])
    end
  end
end

local function get_extra(user, u)
  if u[U_EXTRA] == 1 then return call('GET', P .. 'y:' .. user) or '' end
  return u[U_EXTRA]
end

local function put_user(user, u, before)
  local c = chunk_of(user)
  local key = P .. 'U:' .. c
  local extra = u[U_EXTRA]
  local raw = pack(u)
  if #raw > 64 then
    call('SET', P .. 'y:' .. user, extra)
    local short = {}
    for i = 1, U_EXTRA do short[i] = u[i] end
    short[U_EXTRA] = 1
    raw = pack(short)
    users_[user] = short
  else
    if before and before[U_EXTRA] == 1 then call('DEL', P .. 'y:' .. user) end
    users_[user] = u
  end
  call('HSET', key, user, raw)
  count_user(before, -1)
  count_user(u, 1)
  if call('HLEN', key) > CHUNK then
    local keys = call('HKEYS', key)
    sort_by_octets(keys)
    local from = math.floor(#keys / 2) + 1
    local name = '-' .. keys[from]
    for i = from, #keys do
      call('HSET', P .. 'U:' .. name, keys[i], call('HGET', key, keys[i]))
      call('HDEL', key, keys[i])
    end
    call('ZADD', P .. 'A', 0, name)
  end
end

local function del_user(user, before)
  local c = chunk_of(user)
  call('HDEL', P .. 'U:' .. c, user)
  call('DEL', P .. 'y:' .. user)
  if c ~= '-' and call('EXISTS', P .. 'U:' .. c) == 0 then call('ZREM', P .. 'A', c) end
  count_user(before, -1)
  users_[user] = false
end

local function gen_of(u) return u and u[U_GEN] or 0 end
local function epoch_of(u) return u and u[U_EPOCH] or 0 end

-- Where a row belongs by its user's present state: 1, 2, 3 or HELD.
local function way(r, u)
  local w = u and u[U_WAY] or 0
  if w == HELD then return HELD end
  if r[COPY] == 1 then return r[FIXED] end
  if r[FIXED] ~= 0 and r[GEN] == gen_of(u) then return r[FIXED] end
  if w ~= 0 then return w end
  if r[HINT] ~= 0 then return r[HINT] end
  if r[USER] == '' then return 3 end
  return 1
end

-- A row of another generation of its user's route starts again.
local function fresh(r, u)
  local g = gen_of(u)
  if r[GEN] == g then return end
  r[GEN], r[ATTEMPTS], r[UNKNOWN] = g, 0, 0
  if r[COPY] ~= 1 then r[FIXED] = 0 end
  if u and u[U_SINCE] > r[SINCE] then r[SINCE] = u[U_SINCE] end
end

local function get_row(id, n)
  local raw = call('HGET', P .. 'm:' .. id, n)
  if raw then return unpack_(raw) end
end

local function put_row(id, n, r) call('HSET', P .. 'm:' .. id, n, pack(r)) end

local function is_counted_copy(r) return r[COPY] == 1 and r[LANE] ~= OPHELD and r[LANE] ~= PARKED end

local function count_copy(r, by)
  if is_counted_copy(r) and call('INCRBY', P .. 'c:' .. r[USER], by) <= 0 then
    call('DEL', P .. 'c:' .. r[USER])
  end
end

-- Into the index of its lane; the caller writes the row.
local function index(id, n, r)
  local rid, lane, score = id .. ':' .. n, r[LANE], r[GEN]
  if lane == LEASED then
    score = S_LEASED
  else
    if lane == OPHELD or lane == PARKED then score = S_FIXED end
    call('ZADD', P .. 'q:' .. lane, r[DUE], rid)
  end
  if r[USER] ~= '' then call('ZADD', P .. 'u:' .. r[USER], score, rid) end
  count_copy(r, 1)
end

local function unindex(id, n, r)
  if r[LANE] ~= LEASED then call('ZREM', P .. 'q:' .. r[LANE], id .. ':' .. n) end
  count_copy(r, -1)
end

-- Files a row that is in no index where it belongs.
local function file(id, n, r, u)
  local lane = way(r, u)
  if lane <= 3 then
    ring(lane)
    filled[lane] = true
    lane = lane + BULK
  end
  r[LANE], r[TOKEN] = lane, ''
  index(id, n, r)
  put_row(id, n, r)
end

local function finish(id)
  local m = P .. 'm:' .. id
  local size, chunks, nonce = string.match(call('HGET', m, 's'), '^(%d+) (%d+) (%S*)$')
  call('DEL', m, P .. 'i:' .. id)
  call('ZREM', P .. 'a', id)
  call('ZADD', P .. 'T', NOW, id)
  if size ~= '0' then call('HINCRBY', P .. 's', 'bytes', '-' .. size) end
  if chunks ~= '0' then call('ZADD', P .. 'G', NOW + 60000, id .. '-' .. nonce .. ' ' .. chunks) end
end

-- The row leaves the queue, and the message with its last row.
local function remove(id, n, r)
  unindex(id, n, r)
  if r[USER] ~= '' then call('ZREM', P .. 'u:' .. r[USER], id .. ':' .. n) end
  call('HDEL', P .. 'm:' .. id, n)
  if call('HLEN', P .. 'm:' .. id) <= 2 then finish(id) end
end

local function get_lease(token)
  if token == '' then return nil end
  local raw = call('GET', P .. 'l:' .. token)
  if raw then return unpack_(raw) end
end

local function put_lease(token, l)
  call('SET', P .. 'l:' .. token, pack(l))
  call('ZADD', P .. 'L', l[L_UNTIL], token)
end

local function del_lease(token)
  call('DEL', P .. 'l:' .. token)
  call('ZREM', P .. 'L', token)
end

-- The row may have arrived by a lease that ends without a record, which is known
-- since a time in ms, or since now.
local ROUTES = { 'old', 'new', 'out' }
local function suspect(r, l, since)
  local at = l[L_SENT] or l[L_UNTIL] - 600000 -- of an older version: it was renewed as often as it wanted
  local before = tonumber(string.match(r[DOUBT] or '', '^%S+ (%d+)'))
  if before and before < at then at = before end
  r[DOUBT] = ROUTES[l[L_ROUTE]] .. string.format(' %.0f %.0f', at, since or NOW)
end

-- Ends a lease as if nothing had been claimed, but for the doubt about what was
-- being sent; settled: there is none. What is settled already is not touched.
local function take_back(token, l, settled)
  del_lease(token)
  for _, n in ipairs(l[L_NS]) do
    local r = get_row(l[L_ID], n)
    if r and r[LANE] == LEASED and r[TOKEN] == token then
      local u = get_user(r[USER])
      unindex(l[L_ID], n, r)
      fresh(r, u)
      if l[L_SENDING] == 1 and not settled then suspect(r, l) end
      file(l[L_ID], n, r, u)
    end
  end
end

-- Lines of the journal go into its outbox in the step that they tell of, first of
-- all: when Redis refuses that, nothing is half done.
local function note(line)
  if line ~= '' then call('RPUSH', P .. 'J', line) end
end

-- NOW in words (RFC 3339), by the rules of the calendar.
local function now_text()
  local s, f = math.floor(NOW / 1000), math.floor
  local day, left = f(s / 86400), s % 86400
  local z = day + 719468
  local era = f(z / 146097)
  local doe = z - era * 146097
  local yoe = f((doe - f(doe / 1460) + f(doe / 36524) - f(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + f(yoe / 4) - f(yoe / 100))
  local mp = f((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%03dZ', year, month, doy - f((153 * mp + 2) / 5) + 1,
    f(left / 3600), f(left / 60) % 60, left % 60, NOW % 1000)
end

-- The line of a recipient that the store itself parked.
local function note_parked(id, n, r)
  note(cjson.encode({ t = now_text(), e = 'parked', id = id, n = tonumber(n), to = r[USER], user = r[USER], copy = r[COPY] == 1,
    reply = r[REPLY], by = 'crossfade' }) .. '\n')
end

local GRACE = 60000

local function ghost(token, n, epoch) return token .. ' ' .. n .. ' ' .. epoch end

-- Ends a lease that ran out: a crash is counted, and three in a row park.
-- Where the final dot may be on its way the user stays busy for a while.
local function expire(token, l)
  del_lease(token)
  local id = l[L_ID]
  for i, n in ipairs(l[L_NS]) do
    local r = get_row(id, n)
    if r and r[LANE] == LEASED and r[TOKEN] == token then
      if l[L_SENDING] == 1 and r[USER] ~= '' then
        local g = P .. 'g:' .. r[USER]
        call('ZADD', g, NOW + GRACE, ghost(token, n, l[L_EPOCHS][i]))
        call('PEXPIRE', g, GRACE)
      end
      local u = get_user(r[USER])
      unindex(id, n, r)
      fresh(r, u)
      r[CRASHES] = r[CRASHES] + 1
      if l[L_SENDING] == 1 then suspect(r, l) end
      if r[CRASHES] >= 3 then
        r[LANE], r[TOKEN], r[DUE] = PARKED, '', NOW
        r[REPLY] = 'three deliveries ended in a crash: look at the message before it is released; the last reply before was: ' .. r[REPLY]
        note_parked(id, n, r)
        index(id, n, r)
        put_row(id, n, r)
      else
        file(id, n, r, u)
      end
    end
  end
end

-- Time is Redis' own, and may jump. The clock of the last look is kept: a gap
-- means that nobody looked (Redis was away or stood still) or that the clock
-- was set on. Then leases begin anew, so that what is being sent is not sent
-- by somebody else too. When it was set back, what was due is due now.
local GAP, BACK, AGAIN = 30000, 15000, 60000

local function watch_clock()
  local last = tonumber(call('HGET', P .. 's', 'now') or NOW)
  if NOW > last + GAP or NOW < last - BACK then
    for _, token in ipairs(call('ZRANGE', P .. 'L', 0, -1)) do
      local l = get_lease(token)
      if l and (l[L_UNTIL] < NOW + AGAIN or l[L_UNTIL] > NOW + 2 * AGAIN) then
        l[L_UNTIL] = NOW + AGAIN
        put_lease(token, l)
      end
    end
  end
  if NOW < last - BACK then
    local left = 200
    for lane = BULK + 1, BULK + 3 do
      local rids = call('ZRANGEBYSCORE', P .. 'q:' .. lane, '(' .. string.format('%.0f', NOW), last, 'LIMIT', 0, left)
      for _, rid in ipairs(rids) do
        local id, n = string.match(rid, '^(.-):(%d+)$')
        local r = get_row(id, n)
        call('ZADD', P .. 'q:' .. lane, NOW, rid)
        if r then
          r[DUE] = NOW
          put_row(id, n, r)
        end
      end
      left = left - #rids
      if #rids > 0 then ring(lane - BULK) end
    end
    if left == 0 then return end -- the next look goes on
  end
  if NOW > last + 5000 or NOW < last - BACK or NOW == last then call('HSET', P .. 's', 'now', NOW) end
end

local function reap(limit)
  watch_clock()
  local over = call('ZRANGEBYSCORE', P .. 'L', '-inf', NOW, 'LIMIT', 0, limit)
  for _, token in ipairs(over) do
    local l = get_lease(token)
    if l then expire(token, l) else call('ZREM', P .. 'L', token) end
  end
  return #over
end

-- Files up to limit of a user's rows again that were filed under another
-- generation of his route. Tells how many were moved; fewer than limit: all.
local function move_user(user, limit)
  local u, key = get_user(user), P .. 'u:' .. user
  local g = gen_of(u)
  local rids = call('ZRANGEBYSCORE', key, 0, '(' .. g, 'LIMIT', 0, limit)
  if #rids < limit then
    for _, rid in ipairs(call('ZRANGEBYSCORE', key, '(' .. g, '(9e15', 'LIMIT', 0, limit - #rids)) do
      rids[#rids + 1] = rid
    end
  end
  for _, rid in ipairs(rids) do
    local id, n = string.match(rid, '^(.-):(%d+)$')
    local r = get_row(id, n)
    if r then
      unindex(id, n, r)
      fresh(r, u)
      if r[DUE] > NOW then r[DUE] = NOW end
      file(id, n, r, u)
    else
      call('ZREM', key, rid)
    end
  end
  return #rids
end

-- Goes on with one user whose mail is still to be moved.
local function advance(limit)
  local user = call('ZRANGE', P .. 'W', 0, 0)[1]
  if not user then return 0 end
  local n = move_user(user, limit)
  if n < limit then
    call('ZREM', P .. 'W', user)
  else
    call('ZADD', P .. 'W', NOW, user) -- others first
  end
  return n
end

-- How many deliveries for the user may still reach a mailbox under an epoch
-- older than his present one.
local function busy(user)
  local u = get_user(user)
  local e, k = epoch_of(u), 0
  for _, rid in ipairs(call('ZRANGEBYSCORE', P .. 'u:' .. user, S_LEASED, S_LEASED)) do
    local id, n = string.match(rid, '^(.-):(%d+)$')
    local r = get_row(id, n)
    local l = r and get_lease(r[TOKEN])
    if l and l[L_SENDING] == 1 then
      for i, m in ipairs(l[L_NS]) do
        if tostring(m) == n and l[L_EPOCHS][i] ~= e then k = k + 1 end
      end
    end
  end
  for _, g in ipairs(call('ZRANGEBYSCORE', P .. 'g:' .. user, NOW, '+inf')) do
    if tonumber(string.match(g, '(%d+)$')) ~= e then k = k + 1 end
  end
  return k
end

-- A user has changed: leases that are not sending are cut, and waiting mail
-- follows when the route is another.
local function follow(user, moved)
  for _, rid in ipairs(call('ZRANGEBYSCORE', P .. 'u:' .. user, S_LEASED, S_LEASED)) do
    local id, n = string.match(rid, '^(.-):(%d+)$')
    local r = get_row(id, n)
    local l = r and get_lease(r[TOKEN])
    if l and l[L_SENDING] == 0 then take_back(r[TOKEN], l) end
  end
  if moved and move_user(user, 200) == 200 then call('ZADD', P .. 'W', NOW, user) end
end

local function history(user, epoch, c, from, to)
  call('LPUSH', P .. 'h:' .. user, cjson.encode({
    e = epoch, f = from, t = to, b = c.b, r = c.r, x = c.x, a = NOW,
  }))
end

-- The epoch at which a user who is in no table goes on counting.
local function last_epoch(user)
  local raw = call('LINDEX', P .. 'h:' .. user, 0)
  if not raw then return 0 end
  return cjson.decode(raw).e
end

-- What is popped of the outbox is in a block: number n is at place n - popped - 1.
local function forget(last)
  local popped = tonumber(call('HGET', P .. 'j', 'popped') or 0)
  if last <= popped then return end
  call('LTRIM', P .. 'J', last - popped, -1)
  call('HSET', P .. 'j', 'popped', string.format('%d', last))
end

-- Queues a message: user and hint of its recipients stand from position i of
-- ARGV on. chunks is how many pieces of body there are, and their nonce. False:
-- it is there already, or was.
local function put_message(id, envelope, size, chunks, inline, i, count, line)
  local m = P .. 'm:' .. id
  if call('EXISTS', m) == 1 or call('ZSCORE', P .. 'T', id) then return false end
  note(line)
  for n = 0, count - 1 do
    local user, hint = ARGV[i + 2 * n], tonumber(ARGV[i + 2 * n + 1])
    local u = get_user(user)
    local r = { 0, NOW, user, gen_of(u), hint, 0, 0, 0, 0, NOW, 0, 0, '', '' }
    r[LANE] = way(r, u)
    if r[LANE] <= 3 then
      filled[r[LANE]] = true
      if call('ZCARD', P .. 'q:' .. r[LANE]) == 0 then ring(r[LANE]) end -- else it rang for what is there
    end
    index(id, n, r)
    put_row(id, n, r)
  end
  call('HSET', m, 'e', envelope, 's', size .. ' ' .. chunks)
  if inline ~= '' then call('SET', P .. 'i:' .. id, inline) end
  call('ZADD', P .. 'a', 0, id)
  call('HINCRBY', P .. 's', 'bytes', size)
  return true
end
