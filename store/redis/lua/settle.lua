-- boot, token, id, k outcomes, one for each item (n, user, kind, reply, at, to, noticed, epoch, copy, copy to, doubt, line
-- of the journal), j messages (id, envelope, size, chunks, inline, n, user and hint of each, line) -> OK | LOST, the lanes
-- that were filled
ME = ARGV[1]
local token, id, total = ARGV[2], ARGV[3], tonumber(ARGV[4])

local a = 5
local function arg()
  a = a + 1
  return ARGV[a - 1]
end

local l = get_lease(token)
local good = l ~= nil and (l[L_UNTIL] > NOW or l[L_SENDING] == 1)
if good then
  for i, n in ipairs(l[L_NS]) do
    local r = get_row(id, n)
    if r and epoch_of(get_user(r[USER])) ~= l[L_EPOCHS][i] then good = false end
  end
end

-- First all is looked at, then written: what fails half way stays half done.
local dones, others, doubts, done, lost = {}, {}, {}, 0, false
for _ = 1, total do
  local o = { n = arg(), user = arg(), kind = arg(), reply = arg(), at = tonumber(arg()), to = tonumber(arg()), noticed = arg(),
    epoch = arg(), copy = tonumber(arg()), copy_to = tonumber(arg()), doubt = arg(), line = arg() }
  local r = get_row(id, o.n)
  local ok = r and r[COPY] == o.copy
  if o.doubt == '1' and l and l[L_SENDING] == 1 and ok and r[TOKEN] == token then doubts[#doubts + 1] = o end
  if o.kind == 'done' then
    done = done + 1
    if ok then dones[#dones + 1] = o end
  elseif o.kind ~= 'release' and good then
    if ok and r[LANE] == LEASED and r[TOKEN] == token then
      others[#others + 1] = o
    else
      lost = true -- a lease before recorded it as done
    end
  end
  if o.user ~= '' then call('ZREM', P .. 'g:' .. o.user, ghost(token, o.n, o.epoch)) end
end
local only_done = done == total
if not only_done and call('EXISTS', P .. 'S:' .. token) == 1 then return { 'OK' } end -- it was recorded
if not good and not only_done then lost = true end

local function change(o)
  local r = get_row(id, o.n)
  if r[LANE] == LEASED and r[TOKEN] ~= token then -- a second delivery of what is done: not needed
    local other = get_lease(r[TOKEN])
    if other and other[L_SENDING] == 0 then
      take_back(r[TOKEN], other)
      r = get_row(id, o.n)
    end
  end
  local u = get_user(r[USER])
  local kind = o.kind
  if kind == 'fail' or kind == 'done' and o.copy_to == 0 or kind == 'reroute' and r[COPY] == 1 then
    return remove(id, o.n, r)
  end
  unindex(id, o.n, r)
  if kind ~= 'defer' then r[CRASHES] = 0 end
  r[REPLY], r[TOKEN] = o.reply, ''
  if o.doubt ~= '1' then
    r[DOUBT] = nil
  elseif not r[DOUBT] or l[L_SENDING] == 1 then
    suspect(r, l)
  end
  if o.noticed == '1' then r[NOTICED] = 1 end
  if kind == 'done' then
    r[COPY], r[FIXED], r[ATTEMPTS], r[UNKNOWN], r[SINCE], r[DUE], r[REPLY] = 1, o.copy_to, 0, 0, NOW, NOW, ''
  elseif kind == 'park' then
    r[ATTEMPTS], r[LANE], r[DUE] = r[ATTEMPTS] + 1, PARKED, NOW
    index(id, o.n, r)
    return put_row(id, o.n, r)
  elseif kind == 'retry' then
    r[ATTEMPTS], r[DUE] = r[ATTEMPTS] + 1, o.at
  elseif kind == 'defer' then
    r[DUE] = o.at
  elseif kind == 'reroute' then
    local bit_ = 2 ^ l[L_ROUTE]
    if math.floor(r[UNKNOWN] / bit_) % 2 == 0 then r[UNKNOWN] = r[UNKNOWN] + bit_ end
    r[ATTEMPTS], r[SINCE], r[DUE], r[FIXED] = 0, NOW, NOW, o.to
  end
  r[GEN] = gen_of(u)
  file(id, o.n, r, u)
end

local lines = {}
for _, o in ipairs(dones) do lines[#lines + 1] = o.line end
if not lost then
  for _, o in ipairs(others) do lines[#lines + 1] = o.line end
end
note(table.concat(lines))
for _, o in ipairs(dones) do change(o) end
if not lost then
  for _, o in ipairs(others) do change(o) end
else -- that the final dot went out is a fact all the same
  for _, o in ipairs(doubts) do
    local r = get_row(id, o.n)
    suspect(r, l)
    put_row(id, o.n, r)
  end
end
if l then take_back(token, l, true) end

local queue_them = good and not lost or only_done and #dones > 0
for _ = 1, tonumber(arg()) do
  local mid, env, size, chunks, inline, n = arg(), arg(), tonumber(arg()), arg(), arg(), tonumber(arg())
  if queue_them then put_message(mid, env, size, chunks, inline, a, n, ARGV[a + 2 * n]) end
  a = a + 2 * n + 1
end
call('ZREMRANGEBYSCORE', P .. 'T', '-inf', NOW - 120000)
if lost then return with_filled({ 'LOST' }) end
if not only_done then call('SET', P .. 'S:' .. token, 1, 'PX', 120000) end
return with_filled({ 'OK' })
