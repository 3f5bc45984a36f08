-- Ends a session of a user, as of now, or as of when it was ended first.
-- KEYS: sessions of the user, their rooms
-- ARGV: session, what the keys of connections that a gateway is to end begin with
-- Answers when it was ended in µs, 0 when there is no such session.
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
