-- number, octets -> number of the first line that follows, then lines behind that number, of so many octets about
local after, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local popped = tonumber(call('HGET', P .. 'j', 'popped') or 0)
local from, size = math.max(after - popped, 0), 0
local out = { string.format('%d', popped + from + 1) }
while size < most do
  local lines = call('LRANGE', P .. 'J', from, from + 63)
  for _, line in ipairs(lines) do
    if size >= most then break end
    out[#out + 1] = line
    size = size + #line
  end
  if #lines < 64 then break end
  from = from + 64
end
return out
