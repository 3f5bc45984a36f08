-- What the scripts share that change who is here; it stands before each of them.
-- KEYS: leases, gateway's connections, gateway's number, digests, online, state, dirty,
--       connections that the gateway is to end, what the keys of users' sessions begin with
-- ARGV: gateway, …
local leases, connections, newest, digests = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local online, state, dirty, ended, sessions = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local gateway = ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2] -- µs
local function whole(n) return string.format('%.0f', n) end

local function change(user, is)
  local before = redis.call('HGET', state, user)
  local last = before and tonumber(string.match(before, '^(%d+)')) or 0
  local n = whole(math.max(last + 1, now))
  redis.call('HSET', state, user, n .. ':' .. is)
  redis.call('HSET', dirty, user, n)
end

local function join(user)
  if redis.call('HINCRBY', online, user, 1) == 1 then change(user, 1) end
end

local function leave(user)
  if redis.call('HINCRBY', online, user, -1) <= 0 then
    redis.call('HDEL', online, user)
    change(user, 0)
  end
end

-- Of a connection is kept "user hash session".
local function parts(kept) return string.match(kept, '^(%S+) (%d+) (%S*)$') end

-- A session is "ended µs", or "connection gateway since seen connected mark device", where connected is 1 or 0 and the
-- mark may be empty. All of a user are one hash; a week after it was heard of last, a session is forgotten.
local week = 7 * 24 * 3600 * 1000
local most = 50

local function session(kept) return string.match(kept, '^(%S+) (%S+) (%d+) (%d+) (%d) (%S*) (.*)$') end

-- Makes room for one more session of a user: those that are over a week, or else the one that is over longest.
local function prune(key)
  local all, oldest, left = redis.call('HGETALL', key), nil, 0
  for i = 1, #all, 2 do
    local _, _, _, seen, connected = session(all[i + 1])
    seen = tonumber(seen or string.match(all[i + 1], '^ended (%d+)$'))
    if connected == '1' then
      left = left + 1
    elseif seen < now - week * 1000 then
      redis.call('HDEL', key, all[i])
    else
      left = left + 1
      if not oldest or seen < oldest.seen then oldest = {id = all[i], seen = seen} end
    end
  end
  if left >= most and oldest then redis.call('HDEL', key, oldest.id) end
end

-- Notes that a session lives on a connection. When its user has ended it the connection is to end.
local function begin(user, id, connection, since, mark, device)
  local key = sessions .. user
  local kept = redis.call('HGET', key, id)
  if kept then
    local at, _, begun, _, _, last = session(kept)
    if not at then
      redis.call('SADD', ended, connection)
      return
    end
    since = begun
    if mark == '' then mark = last end
  else
    prune(key)
  end
  redis.call('HSET', key, id, table.concat({connection, gateway, since, whole(now), '1', mark, device}, ' '))
  redis.call('PEXPIRE', key, whole(week))
end

-- Notes that a connection is over; its session may have gone on to another one.
local function over(user, id, connection, mark)
  redis.call('SREM', ended, connection)
  if id == '' then return end
  local key = sessions .. user
  local kept = redis.call('HGET', key, id)
  local at, where, since, _, _, last, device = session(kept or '')
  if at ~= connection then return end
  if mark == '' then mark = last end
  redis.call('HSET', key, id, table.concat({at, where, since, whole(now), '0', mark, device}, ' '))
end
