-- Ends a session of a user, and adds the connections of the session to the connections that their gateways must close.
-- KEYS: the sessions of the user, the rooms of these sessions
-- ARGV: session, prefix of the keys of the connections that a gateway must close (the gateway's name follows)
-- Returns the time in µs at which the session was first ended, or 0 if there is no such session.
local kept = redis.call('HGET', KEYS[1], ARGV[1])
if not kept then return '0' end
local before = string.match(kept, '^ended (%d+)$')
if before then return before end
for connection, gateway in string.gmatch(string.match(kept, '^%S+ %d+ %d+ (%S*) '), '([^,/]+)/([^,]+)') do
  redis.call('SADD', ARGV[2] .. gateway, connection)
end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
redis.call('HSET', KEYS[1], ARGV[1], 'ended ' .. now)
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', keptFor))
redis.call('HDEL', KEYS[2], ARGV[1])
return now
