-- Crossfade: a Dovecot proxy sends each user to the side that has the mailbox now (docs/lookups.md).
--
-- dovecot.conf of the proxy:
--
--   passdb {
--     driver = lua
--     args = file=/etc/dovecot/crossfade.lua blocking=yes
--   }
--
-- Debian: apt-get install dovecot-auth-lua lua-socket. The answer must not be kept: leave auth_cache_size at 0.

local url = "http://127.0.0.1:8026/dovecot"      -- lookup.http of crossfade.yaml
local key_file = "/etc/crossfade/lookup.token"   -- a copy of lookup.token_file, readable for the user dovecot
local timeout = 15                               -- seconds; Crossfade answers within 10

local http = require("socket.http")
local ltn12 = require("ltn12")
local key

function script_init()
  local f, err = io.open(key_file, "r")
  if not f then
    error("crossfade: cannot read the key: " .. tostring(err))
  end
  key = f:read("l")
  f:close()
  return 0
end

local function escape(s)
  return (s:gsub("[^%w._~-]", function(c) return string.format("%%%02X", c:byte()) end))
end

-- Everything but a clear yes or no is a failure of the lookup: the client is told to try again, and keeps its password.
local function failure(req, why)
  req:log_error("crossfade: " .. why)
  return dovecot.auth.PASSDB_RESULT_INTERNAL_FAILURE, ""
end

function auth_passdb_lookup(req)
  local body = {}
  http.TIMEOUT = timeout
  local ok, status = http.request{
    url = url .. "?user=" .. escape(req.user) .. "&service=" .. escape(req.service),
    headers = { ["X-Auth-Key"] = key },
    sink = ltn12.sink.table(body),
    redirect = false,
  }
  if not ok then
    return failure(req, "no answer: " .. tostring(status))
  end
  if status == 404 then
    return dovecot.auth.PASSDB_RESULT_USER_UNKNOWN, ""
  end
  if status ~= 200 then
    return failure(req, "the answer has the status " .. tostring(status))
  end
  local fields = {}
  for name, value in table.concat(body):gmatch("([%w_]+)=([^\r\n]*)") do
    fields[name] = value
  end
  if fields.proxy ~= "y" or not fields.host or not fields.port then
    return failure(req, "the answer is not one of Crossfade")
  end
  return dovecot.auth.PASSDB_RESULT_OK, fields
end
