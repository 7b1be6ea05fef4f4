-- repair (0, 1), chunk, users of it -> states and how many mailboxes are in each, findings (kind, where, detail, what was done)
--
-- Looks whether the users of a chunk can be found, and at what is kept about
-- them for scripts.
local repair, chunk = ARGV[1] == '1', ARGV[2]
local key = P .. 'U:' .. chunk
local WAYS = { [''] = 0, old = 1, syncing = 1, ready = 1, new = 2, done = 2, cutover = HELD, rollback = HELD }
local NO_COPIES = { syncing = 1, ready = 1, cutover = 1, rollback = 1 }
local found, states = {}, {}
local function say(kind, where, detail, done) found[#found + 1] = { kind, where, detail, repair and done or '' } end
local function whole(user, u) -- a copy with its details, for put_user
  local x = {}
  for i = 1, U_EXTRA do x[i] = u[i] end
  x[U_EXTRA] = get_extra(user, u)
  return x
end

-- A user in a chunk that is not his goes into his own, unless he is there with
-- a later epoch.
local function bring_home(user, u)
  say('LostUser', user, 'he is in the chunk ' .. chunk .. ', and is looked for in ' .. chunk_of(user), 'put where he is looked for')
  if not repair then return end
  local there, mine = get_user(user), whole(user, u)
  call('HDEL', key, user)
  if there and there[U_EPOCH] >= u[U_EPOCH] then return end
  put_user(user, mine, there and whole(user, there) or mine)
end

local function check_user(user, u)
  if u[U_EXTRA] == 1 and call('EXISTS', P .. 'y:' .. user) == 0 then
    say('BadUser', user, 'wave, logins, targets and note are gone: set them again', '')
    return
  end
  local raw = get_extra(user, u)
  local good, x = pcall(cjson.decode, raw == '' and '{}' or raw)
  if not good or type(x) ~= 'table' or not WAYS[u[U_STATE]] then
    say('BadUser', user, 'state ' .. tostring(u[U_STATE]) .. ', details ' .. tostring(raw), '')
    return
  end
  if u[U_BATCH] ~= 0 and call('HEXISTS', P .. 'I', string.format('%d', u[U_BATCH])) == 0 then
    say('BadUser', user, 'the bulk import that made him is not in the history', 'no longer asked for')
    u[U_BATCH] = 0
  end
  local way_, copies = WAYS[u[U_STATE]], (x.d == 'both' and not NO_COPIES[u[U_STATE]]) and 1 or 0
  if u[U_WAY] ~= way_ or u[U_COPIES] ~= copies then
    say('BadUser', user, 'state ' .. u[U_STATE] .. ', and his mail goes ' .. u[U_WAY], 'it follows the state')
    if u[U_WAY] ~= way_ then u[U_GEN] = u[U_EPOCH] end
    u[U_WAY], u[U_COPIES] = way_, copies
  end
  local line = call('LINDEX', P .. 'h:' .. user, 0)
  local ok, h = pcall(cjson.decode, line or '{}')
  local last = ok and type(h) == 'table' and tonumber(h.e) or 0
  if last > u[U_EPOCH] then
    say('WrongEpoch', user, 'epoch ' .. u[U_EPOCH] .. ', and the history has ' .. last, 'epoch ' .. last)
    u[U_EPOCH] = last
  end
  if u[U_GEN] > u[U_EPOCH] then
    say('WrongEpoch', user, 'generation ' .. u[U_GEN] .. ' of epoch ' .. u[U_EPOCH], 'generation ' .. u[U_EPOCH])
    u[U_GEN] = u[U_EPOCH]
  end
end

for i = 3, #ARGV do
  local user = ARGV[i]
  local raw = call('HGET', key, user)
  local good, u = pcall(unpack_, raw or '')
  if raw and (not good or type(u) ~= 'table' or #u < U_EXTRA or not tonumber(u[U_EPOCH]) or not tonumber(u[U_GEN])) then
    say('BadUser', user, 'what is stored cannot be read', '')
  elseif raw then
    if chunk_of(user) ~= chunk then
      bring_home(user, u)
      local now = get_user(user)
      if repair and now then u = now end
    else
      local before, count = whole(user, u), #found
      check_user(user, u)
      if repair and #found > count and found[#found][4] ~= '' then
        put_user(user, whole(user, u), before)
        follow(user, true)
      end
    end
    if u[U_KIND] == 'mailbox' then states[u[U_STATE]] = (states[u[U_STATE]] or 0) + 1 end
  end
end
local list = {}
for s, k in pairs(states) do
  list[#list + 1] = s
  list[#list + 1] = k
end
return { list, found }
