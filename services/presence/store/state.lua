-- What the scripts share that change who is here; it stands before each of them.
-- KEYS: leases, gateway's connections, gateway's number, digests, online, state, dirty,
--       connections that the gateway is to end, those that it tells in parts, what the keys of sessions begin with,
--       what the keys of their rooms begin with
-- ARGV: gateway, …
local leases, connections, newest, digests = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local online, state, dirty = KEYS[5], KEYS[6], KEYS[7]
local ended, telling, sessions, subscribed = KEYS[8], KEYS[9], KEYS[10], KEYS[11]
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

-- Of a connection is kept "user hash session"; an earlier version kept "user hash".
local function parts(kept) return string.match(kept, '^(%S+) (%d+) ?(%S*)$') end

-- A session is "ended µs", or "gateway since seen connections token device": connections are "connection/gateway", the
-- newest last, as a device that changes networks has two for a while; they and the token may be empty. All sessions of a
-- user are one hash; one is forgotten when it was not heard of for as long as sessions are kept (keptFor, in ms).
local most = 50

local function session(kept) return string.match(kept, '^(%S+) (%d+) (%d+) (%S*) (%S*) (.*)$') end

local function keep(user, id, where, since, on, token, device)
  local key = sessions .. user
  redis.call('HSET', key, id, table.concat({where, since, whole(now), table.concat(on, ','), token, device}, ' '))
  redis.call('PEXPIRE', key, whole(keptFor))
  redis.call('PEXPIRE', subscribed .. user, whole(keptFor))
end

-- Notes which rooms a connection of a session is subscribed to: '' where that is not known or has not changed, else '='
-- and each room with a space before it. They are kept as "connection/gateway room room …". A connection that is newer has
-- the last word: what an older one reports is late. '?' in place of '=' marks rooms that the session had before the
-- connection: they are kept only where none are, and as no connection's, so that every other report replaces them.
local function subscribe(user, id, on, one, rooms)
  if rooms == '' then return end
  local before = redis.call('HGET', subscribed .. user, id)
  if string.sub(rooms, 1, 1) == '?' then
    if before then return end
    one = '-'
  end
  local by = string.match(before or '', '^%S+')
  local passed = false
  for at in string.gmatch(on, '[^,]+') do
    if passed and at == by then return end
    passed = passed or at == one
  end
  redis.call('HSET', subscribed .. user, id, one .. string.sub(rooms, 2))
  redis.call('PEXPIRE', subscribed .. user, whole(keptFor))
end

-- Lists connections without one of them, and says whether that one was the newest.
local function without(on, one)
  local others, newest_one = {}, false
  for at in string.gmatch(on, '[^,]+') do
    newest_one = at == one
    if not newest_one then table.insert(others, at) end
  end
  return others, newest_one
end

-- Makes room for one more session of a user: those that are kept no longer, or else the one that is over longest.
local function prune(user)
  local key = sessions .. user
  local function forget(id)
    redis.call('HDEL', key, id)
    redis.call('HDEL', subscribed .. user, id)
  end
  local all, oldest, left = redis.call('HGETALL', key), nil, 0
  for i = 1, #all, 2 do
    local _, _, seen, on = session(all[i + 1])
    seen = tonumber(seen or string.match(all[i + 1], '^ended (%d+)$'))
    if on and on ~= '' then
      left = left + 1
    elseif seen < now - keptFor * 1000 then
      forget(all[i])
    else
      left = left + 1
      if not oldest or seen < oldest.seen then oldest = {id = all[i], seen = seen} end
    end
  end
  if left >= most and oldest then forget(oldest.id) end
end

-- Notes that a session lives on a connection, which may be known already; then its token is of interest if none is newer.
-- When its user has ended it the connection is to end.
local function begin(user, id, connection, since, token, device, rooms)
  local one = connection .. '/' .. gateway
  local kept = redis.call('HGET', sessions .. user, id)
  if not kept then
    prune(user)
    keep(user, id, gateway, since, {one}, token, device)
    subscribe(user, id, one, one, rooms)
    return
  end
  local where, begun, _, on, last, before = session(kept)
  if not where then
    redis.call('SADD', ended, connection)
    return
  end
  if token == '' then token = last end
  local others, is_newest = without(on, one)
  if is_newest then
    table.insert(others, one)
    keep(user, id, where, begun, others, token, device)
  elseif not string.find(',' .. on .. ',', ',' .. one .. ',', 1, true) then
    table.insert(others, one)
    keep(user, id, gateway, begun, others, token, device)
    on = on == '' and one or on .. ',' .. one
  end
  subscribe(user, id, on, one, rooms)
end

-- Notes that a connection is over; its session may have gone on to another one.
local function over(user, id, connection, token, rooms)
  redis.call('SREM', ended, connection)
  if id == '' then return end
  local one = connection .. '/' .. gateway
  local where, since, _, on, last, device = session(redis.call('HGET', sessions .. user, id) or '')
  if not where then return end
  local others, is_newest = without(on, one)
  if not is_newest or token == '' then token = last end
  keep(user, id, where, since, others, token, device)
  subscribe(user, id, on, one, rooms)
end

-- Notes the session of a connection that began and ended between two reports. Where the session is known, its other
-- connections count as newer.
local function passed(user, id, connection, since, token, device, rooms)
  if id == '' then return end
  local one = connection .. '/' .. gateway
  local kept = redis.call('HGET', sessions .. user, id)
  if not kept then
    prune(user)
    keep(user, id, gateway, since, {}, token, device)
    subscribe(user, id, '', one, rooms)
    return
  end
  local where, _, _, on = session(kept)
  if where then subscribe(user, id, one .. ',' .. on, one, rooms) end
end
