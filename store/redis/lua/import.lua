-- token, slice -> 1 when there is more, created, updated
--
-- Does the slice of a bulk import when it is the next one. Slices lie in
-- J:<token>, JSON arrays of address, kind, state, way, since, and what else is
-- given as an object; what is empty was not given.
local token, slice = ARGV[1], tonumber(ARGV[2])
local job = P .. 'K:' .. token
local at = call('HGET', job, 'next')
if not at then return { 0, 0, 0 } end
local NO_COPIES = { syncing = 1, ready = 1, cutover = 1, rollback = 1 }

local function copies(state, x)
  return x.d == 'both' and not NO_COPIES[state] and 1 or 0
end

local function encode(x)
  if next(x) == nil then return '' end
  return cjson.encode(x)
end

local function create(user, g, c, batch)
  local kind, state = g[2], g[3]
  if kind == '' then kind = 'mailbox' end
  local w = g[4]
  if kind == 'mailbox' and state == '' then state, w = 'old', 1 end
  local last = last_epoch(user)
  local since = g[5]
  if since == 0 then since = NOW end
  local epoch = last + 1
  local u = { epoch, epoch, w, copies(state, g[6]), since, state, kind, last == 0 and batch or 0, encode(g[6]) }
  put_user(user, u, nil)
  if last > 0 then history(user, epoch, c, '', state) end
  follow(user, true)
end

local function update(user, u, g, c)
  local raw = get_extra(user, u)
  local x = raw == '' and {} or cjson.decode(raw)
  for k, v in pairs(g[6]) do x[k] = v end
  if g[2] == 'mailbox' and not g[6].t then x.t = nil end
  local new = {}
  for i = 1, U_EXTRA do new[i] = u[i] end
  if g[2] ~= '' then new[U_KIND] = g[2] end
  if new[U_STATE] == '' then new[U_STATE], new[U_WAY] = g[3], g[4] end
  new[U_COPIES], new[U_EXTRA] = copies(new[U_STATE], x), encode(x)
  put_user(user, new, u)
  history(user, u[U_EPOCH], c, u[U_STATE], new[U_STATE])
end

if tonumber(at) == slice then
  local raw = call('LINDEX', P .. 'J:' .. token, slice)
  if raw then
    local batch = call('HGET', job, 'batch')
    local c = cjson.decode(call('HGET', P .. 'I', batch))
    for _, g in ipairs(cjson.decode(raw)) do
      local user = g[1]
      local u = get_user(user)
      if u then
        update(user, u, g, c)
        call('HINCRBY', job, 'updated', 1)
      else
        create(user, g, c, tonumber(batch))
        call('HINCRBY', job, 'created', 1)
      end
    end
    call('HSET', job, 'next', slice + 1)
  end
end
local created, updated = tonumber(call('HGET', job, 'created') or 0), tonumber(call('HGET', job, 'updated') or 0)
local nxt = tonumber(call('HGET', job, 'next'))
if nxt < call('LLEN', P .. 'J:' .. token) then return { 1, created, updated } end
call('DEL', P .. 'J:' .. token)
call('ZREM', P .. 'K', token)
call('PEXPIRE', job, 600000)
return { 0, created, updated }
