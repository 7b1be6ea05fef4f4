-- mark, then accounts: key, epoch (-1: in no table), gen, way, copies, since, state, kind, batch, extra,
-- what the batch is (empty: known), lines of history, each of them (oldest first) -> OK
if call('GET', P .. 'loading') ~= ARGV[1] then return redis.error_reply('IMPORT the copy was discarded by another') end
local a = 1
local function arg()
  a = a + 1
  return ARGV[a]
end
local function num() return tonumber(arg()) end

while a < #ARGV do
  local user, epoch = arg(), num()
  local u = { epoch, num(), num(), num(), num(), arg(), arg(), num(), arg() }
  local batch, lines = arg(), num()
  local h = P .. 'h:' .. user
  call('DEL', h) -- of a call before that had no answer
  for _ = 1, lines do call('LPUSH', h, arg()) end
  if batch ~= '' then call('HSET', P .. 'I', string.format('%d', u[U_BATCH]), batch) end
  if epoch >= 0 then put_user(user, u, get_user(user)) end
end
return 'OK'
