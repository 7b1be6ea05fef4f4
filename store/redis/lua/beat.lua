-- node, boot, join (0, 1), info, dead boot or '', stale ms, knows that it is
-- drained (0, 1)
-- -> OK, now, who drains it or '' | BUSY, now, info, boot | TAKEN, now, info | LOADING, now, mark
--
-- A node says that it lives. join enters it: over one of the same name that
-- left, has not been heard of for the stale time, or is known to be dead.
local N_BOOT, N_INFO, N_BEAT, N_SINCE, N_DRAIN, N_LEFT, N_KNOWS = 1, 2, 3, 4, 5, 6, 7
local node, boot, stale = ARGV[1], ARGV[2], tonumber(ARGV[6])
local key = P .. 'n'
if ARGV[3] == '1' then -- a copy into this store is not finished: it is none yet
  local mark = call('GET', P .. 'loading')
  if mark then return { 'LOADING', NOW, mark } end
end
local raw = call('HGET', key, node)
local r = raw and unpack_(raw)

-- Gives back at once what a dead boot had and was not sending: the end of a
-- dot may be under way, so that one ends by its time.
local function bury(b)
  for _, token in ipairs(call('ZRANGE', P .. 'L', 0, -1)) do
    local l = get_lease(token)
    if l and l[L_BOOT] == b and l[L_SENDING] == 0 then take_back(token, l) end
  end
end

-- Whom a boot owned whose process is gone may be taken up at once.
local function disinherit(b)
  for _, user in ipairs(call('ZRANGEBYSCORE', P .. 'O', NOW, '+inf')) do
    if string.match(call('HGET', P .. 'o', user) or '', '^%S+') == b then
      call('HDEL', P .. 'o', user)
      call('ZADD', P .. 'O', NOW, user)
    end
  end
end

if r and r[N_BOOT] ~= boot then
  if ARGV[3] == '0' then return { 'TAKEN', NOW, r[N_INFO] } end
  if r[N_LEFT] == 0 and r[N_BOOT] ~= ARGV[5] and math.abs(NOW - r[N_BEAT]) < stale then
    return { 'BUSY', NOW, r[N_INFO], r[N_BOOT] }
  end
  bury(r[N_BOOT])
  if r[N_BOOT] == ARGV[5] then disinherit(r[N_BOOT]) end
  r = nil
end
if not r then
  r = { boot, ARGV[4], NOW, NOW, '', 0, 0 }
  -- Those that left a day ago, or died a week ago, are history.
  local all = call('HGETALL', key)
  for i = 1, #all, 2 do
    local o = unpack_(all[i + 1])
    if NOW - o[N_BEAT] > 604800000 or o[N_LEFT] ~= 0 and NOW - o[N_LEFT] > 86400000 then call('HDEL', key, all[i]) end
  end
end
r[N_INFO], r[N_BEAT], r[N_KNOWS] = ARGV[4], NOW, tonumber(ARGV[7])
call('HSET', key, node, pack(r))
return { 'OK', NOW, r[N_DRAIN] }
