-- user, epoch, op, state, kind, way, copies, since, extra, change
-- -> OK, epoch, since, busy, copies | EPOCH, the epoch in the table
--
-- op names this call, so that a repeated one is known.
local user, want, op = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local u, again = get_user(user), P .. 'p:' .. user
if epoch_of(u) ~= want then
  if u and call('GET', again) == op then return { 'OK', u[U_EPOCH], u[U_SINCE], busy(user) } end
  return { 'EPOCH', epoch_of(u) }
end
local state, w, since, c = ARGV[4], tonumber(ARGV[6]), tonumber(ARGV[8]), cjson.decode(ARGV[10])
local epoch = want
if not u then epoch = last_epoch(user) end
epoch = epoch + 1
if since == 0 or u and u[U_STATE] ~= state and since == u[U_SINCE] then since = NOW end
local gen = epoch
if u and u[U_WAY] == w then gen = u[U_GEN] end
local batch = u and u[U_BATCH] or 0
local new = { epoch, gen, w, tonumber(ARGV[7]), since, state, ARGV[5], batch, ARGV[9] }
local moved = gen_of(u) ~= gen
put_user(user, new, u)
local from, to = c.f, c.t
if from == '' and u then from = u[U_STATE] end
if to == '' then to = state end
history(user, epoch, c, from, to)
call('SET', again, op, 'PX', 120000)
follow(user, moved)
return { 'OK', epoch, since, busy(user) }
