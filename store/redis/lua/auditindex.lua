-- repair (0, 1), key, what it is, members -> findings (kind, where, detail, what was done)
--
-- Compares entries of an index with the rows that they stand for. What it is:
-- the number of a lane, u and a user, a, i, G, T, L, A.
local repair, name, what = ARGV[1] == '1', ARGV[2], ARGV[3]
local key, out = P .. name, {}
local function say(kind, where, detail, done) out[#out + 1] = { kind, where, detail, repair and done or '' } end
local function drop(member, detail)
  say('StrayEntry', name .. ' ' .. member, detail, 'removed')
  if repair then call('ZREM', key, member) end
end

local function row_of(rid)
  local id, n = string.match(rid, '^(.-):(%d+)$')
  if not id then return nil end
  local raw = call('HGET', P .. 'm:' .. id, n)
  if not raw then return nil end
  local good, r = pcall(unpack_, raw)
  if good and type(r) == 'table' then return r end
  return {}
end

local check = {}
check.a = function(id)
  if call('EXISTS', P .. 'm:' .. id) == 0 then drop(id, 'there is no such message') end
end
check.i = function(id)
  if call('EXISTS', P .. 'm:' .. id) == 0 then
    say('OrphanBody', 'i:' .. id, 'there is no such message', 'removed')
    if repair then call('UNLINK', P .. 'i:' .. id) end
  end
end
check.G = function(member)
  local id, nonce = string.match(member, '^(.-)%-(%S*) ')
  local place = id and call('HGET', P .. 'm:' .. id, 's')
  if place and string.match(place, '(%S*)$') == nonce then
    say('Marked', 'G ' .. member, 'the body of a queued message was to be removed', 'the mark was removed')
    if repair then call('ZREM', key, member) end
  end
end
check.T = function(id)
  if tonumber(call('ZSCORE', key, id) or 0) > NOW + 60000 then
    say('Marked', 'T ' .. id, 'a tombstone of the future', 'it is of now')
    if repair then call('ZADD', key, NOW, id) end
  end
end
check.L = function(token)
  if call('EXISTS', P .. 'l:' .. token) == 0 then drop(token, 'there is no such lease') end
end
check.A = function(chunk)
  if tonumber(call('ZSCORE', key, chunk) or 0) ~= 0 then
    say('Unindexed', 'A ' .. chunk, 'its score is not 0', 'it is')
    if repair then call('ZADD', key, 0, chunk) end
  end
  if call('EXISTS', P .. 'U:' .. chunk) == 0 then drop(chunk, 'the chunk has no users') end
end
check.l = function(token)
  local l = get_lease(token)
  if not l then return end
  local k = 0
  for _, n in ipairs(l[L_NS]) do
    local r = row_of(l[L_ID] .. ':' .. n)
    if r and r[LANE] == LEASED and r[TOKEN] == token then k = k + 1 end
  end
  if k == 0 then
    say('LooseLease', 'l:' .. token, 'of message ' .. l[L_ID], 'removed')
    if repair then del_lease(token) end
  elseif tonumber(call('ZSCORE', P .. 'L', token) or '-1') ~= l[L_UNTIL] then
    say('Unindexed', 'l:' .. token, 'the index of deadlines has it not, or at another time', 'entered')
    if repair then put_lease(token, l) end
  end
end

-- What left the index since it was read is no finding.
local function still_there(member)
  if what == 'i' or what == 'l' then return call('EXISTS', P .. what .. ':' .. member) == 1 end
  return call('ZSCORE', key, member)
end

for i = 4, #ARGV do
  local member = ARGV[i]
  if not still_there(member) then
    member = nil
  elseif what == 'u' then
    local user = string.sub(name, 3)
    local r = row_of(member)
    if not r then
      drop(member, 'there is no such recipient')
    elseif r[USER] and r[USER] ~= user then
      drop(member, 'it is of ' .. r[USER])
    end
  elseif check[what] then
    check[what](member)
  else
    local r = row_of(member)
    if not r then
      drop(member, 'there is no such recipient')
    elseif r[LANE] and r[LANE] ~= tonumber(what) then
      drop(member, 'it is in ' .. r[LANE])
    end
  end
end
return out
