-- Who is alive, and whether Redis still is the one that it was.
--
-- KEYS[1]  the limiters, by when they were last heard, in milliseconds; newcomers below zero
-- KEYS[2]  the epoch: eight bytes that change when data was lost, then a count of all beats
-- KEYS[3]  where this limiter has an instance name: which limiter has that name
-- ARGV[1]  this limiter; ARGV[2] "1" when it says goodbye
-- ARGV[3]  the epoch as this limiter knows it, or nothing
-- ARGV[4]  the count that it knows
-- ARGV[5]  the epoch to begin, where there is none or data was lost
-- ARGV[6]  who was heard within so many milliseconds counts as alive
-- ARGV[7]  for so many milliseconds after it counts as silent, a limiter counts as lapsed
-- ARGV[8]  "first" until a beat of this limiter was answered, "new" until it has lived for some,
--          then "lived"
-- ARGV[9]  after this time, in milliseconds, the sender has given this beat up; or nothing
-- Reply    the epoch, then doubles, little-endian: the count, how many are alive, how many have
--          lapsed, and the server's time in milliseconds; of a beat that was given up only the
--          last of these.

local SILENCE, LONGEST, EPOCH_KEPT = 3000, 3600000, 604800000

local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local members, epoch_key, name, me = KEYS[1], KEYS[2], KEYS[3], ARGV[1]

if ARGV[2] == '1' then
  redis.call('ZREM', members, me)
  return ''
end

-- Executed by a server that was frozen: the sender decides from memory by now.
if ARGV[9] ~= '' and now > tonumber(ARGV[9]) then return struct.pack('<d', now) end

local stored = redis.call('GET', epoch_key)
local epoch, count = ARGV[5], 0
if stored and #stored == 16 then
  local kept = string.sub(stored, 1, 8)
  local beats = struct.unpack('<d', stored, 9)
  -- Fewer beats than were counted before: it went back to an older state of itself. A count that
  -- is none is not ours.
  if not (beats >= 0 and beats < 9007199254740992) then
    epoch, count = ARGV[5], 0
  elseif kept ~= ARGV[3] or beats >= struct.unpack('<d', ARGV[4]) then
    epoch, count = kept, beats
  end
end
count = count + 1
redis.call('SET', epoch_key, epoch .. struct.pack('<d', count), 'PX', EPOCH_KEPT)

if name then
  local owner = redis.call('GET', name)
  if owner == me or not owner or ARGV[8] == 'first' then
    -- Its predecessor has ended, or beats again within a second.
    if owner and owner ~= me then redis.call('ZREM', members, owner) end
    redis.call('SET', name, me, 'PX', LONGEST)
  end
end

-- Beats from the future: the server's clock was set back. Those who live beat again.
redis.call('ZREMRANGEBYSCORE', members, now + 2000, '+inf')
redis.call('ZREMRANGEBYSCORE', members, '-inf', -now - 2000)
-- Newcomers that fell silent, and then whoever has lapsed for as long as anybody may ask for.
redis.call('ZREMRANGEBYSCORE', members, SILENCE - now, now - SILENCE - LONGEST)
redis.call('ZADD', members, ARGV[8] == 'lived' and now or -now, me)
redis.call('PEXPIRE', members, SILENCE + LONGEST)
local heard = now - ARGV[6]
local alive = redis.call('ZCOUNT', members, heard, '+inf') + redis.call('ZCOUNT', members, '-inf', -heard)
local lapsed = redis.call('ZCOUNT', members, now - SILENCE - ARGV[7], heard - 1)
return epoch .. struct.pack('<dddd', count, alive, lapsed, now)
