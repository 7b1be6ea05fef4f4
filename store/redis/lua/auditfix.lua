-- id, envelope ('': as it is), place of the body ('': as it is), word to operators, new rows (n, user, hint) -> OK | BUSY | GONE
--
-- Parks a message that cannot be made whole. Rows that cannot be read, or are
-- not there, are made again of what the caller knows.
local id, why = ARGV[1], ARGV[4]
local m = P .. 'm:' .. id
if call('EXISTS', m) == 0 then return 'GONE' end
local ns, bad = {}, {}
for _, n in ipairs(call('HKEYS', m)) do
  if n ~= 'e' and n ~= 's' then
    local good, r = pcall(unpack_, call('HGET', m, n))
    if not good or type(r) ~= 'table' or type(r[USER]) ~= 'string' then
      bad[n] = true
    else
      local l = r[LANE] == LEASED and get_lease(r[TOKEN])
      if l and l[L_SENDING] == 1 then return 'BUSY' end
      ns[#ns + 1] = n
    end
  end
end
if ARGV[2] ~= '' then call('HSET', m, 'e', ARGV[2]) end
if ARGV[3] ~= '' then call('HSET', m, 's', ARGV[3]) end

local function park(n, r)
  r[LANE], r[TOKEN], r[DUE], r[REPLY] = PARKED, '', NOW, why
  index(id, n, r)
  put_row(id, n, r)
end

for _, n in ipairs(ns) do
  local r = get_row(id, n)
  if r[LANE] == LEASED then
    local l = get_lease(r[TOKEN])
    if l then take_back(r[TOKEN], l) end
    r = get_row(id, n)
  end
  if r[LANE] ~= PARKED then
    unindex(id, n, r)
    park(n, r)
  end
end
for i = 5, #ARGV, 3 do
  local n, user = ARGV[i], ARGV[i + 1]
  if bad[n] or call('HEXISTS', m, n) == 0 then
    park(n, { PARKED, NOW, user, gen_of(get_user(user)), tonumber(ARGV[i + 2]), 0, 0, 0, 0, NOW, 0, 0, '', '' })
  end
end
return 'OK'
