-- mark, then messages: id, envelope, size, place of the body, inline body, n,
-- and of each row n, lane (4 for all that waits), due, user, gen, hint, fixed, copy, attempts, crashes, since,
-- noticed, unknown, reply, doubt -> OK
--
-- Writes messages into a store that is no store yet. The mark says that this
-- copy is still the one that writes; a message that is there is not touched.
if call('GET', P .. 'loading') ~= ARGV[1] then return redis.error_reply('IMPORT the copy was discarded by another') end
local a = 1
local function arg()
  a = a + 1
  return ARGV[a]
end
local function num() return tonumber(arg()) end

while a < #ARGV do
  local id, envelope, size, place, inline, count = arg(), arg(), num(), arg(), arg(), num()
  local m = P .. 'm:' .. id
  local there = call('EXISTS', m) == 1
  for _ = 1, count do
    local n = arg()
    local lane, due, user, gen, hint, fixed, copy = num(), num(), arg(), num(), num(), num(), num()
    local r = { lane, due, user, gen, hint, fixed, copy, num(), num(), num(), num(), num(), '', arg() }
    local doubt = arg()
    if doubt ~= '' then r[DOUBT] = doubt end
    if not there then
      if lane == HELD then
        r[LANE] = way(r, get_user(user))
        if r[LANE] <= 3 then r[LANE] = r[LANE] + BULK end
      end
      index(id, n, r)
      put_row(id, n, r)
    end
  end
  if not there then
    call('HSET', m, 'e', envelope, 's', string.format('%d', size) .. ' ' .. place)
    if inline ~= '' then call('SET', P .. 'i:' .. id, inline) end
    call('ZADD', P .. 'a', 0, id)
    call('HINCRBY', P .. 's', 'bytes', string.format('%d', size))
  end
end
return 'OK'
