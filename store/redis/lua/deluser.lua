-- user, epoch, op, change -> OK | NONE | EPOCH, the epoch in the table
local user, want, op = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local u, again = get_user(user), P .. 'p:' .. user
if not u then
  if call('GET', again) == op then return { 'OK', 0 } end
  return { 'NONE', 0 }
end
if u[U_EPOCH] ~= want then return { 'EPOCH', u[U_EPOCH] } end
local c = cjson.decode(ARGV[4])
local from = c.f
if from == '' then from = u[U_STATE] end
if u[U_BATCH] ~= 0 then -- what the import wrote is kept with the user, who goes
  local b = cjson.decode(call('HGET', P .. 'I', u[U_BATCH]))
  call('RPUSH', P .. 'h:' .. user, cjson.encode({ e = b.e or 1, f = '', t = b.t or '', b = b.b, r = b.r, x = b.x, a = b.a }))
end
local gen = u[U_GEN]
del_user(user, u)
history(user, want + 1, c, from, c.t)
call('SET', again, op, 'PX', 120000)
follow(user, gen ~= 0)
return { 'OK', 0 }
