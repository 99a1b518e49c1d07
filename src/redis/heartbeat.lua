-- Who is alive, and whether Redis still is the one that it was.
--
-- KEYS[1]  the limiters, by when they were last heard
-- KEYS[2]  the epoch: eight bytes that change when data was lost, then a count of all beats
-- ARGV[1]  this limiter; ARGV[2] "1" when it says goodbye
-- ARGV[3]  the epoch as this limiter knows it, or nothing
-- ARGV[4]  the count that it knows
-- ARGV[5]  the epoch to begin, where there is none or data was lost
-- ARGV[6]  who was heard within so many milliseconds counts as alive
-- Reply    the epoch, then doubles, little-endian: the count, how many are alive, and how many
--          have lapsed.

local KEPT, EPOCH_KEPT = 60000, 604800000

local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local members, epoch_key, me = KEYS[1], KEYS[2], ARGV[1]

if ARGV[2] == '1' then
  redis.call('ZREM', members, me)
  return ''
end

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

-- Beats from the future: the server's clock was set back. Those who live beat again.
redis.call('ZREMRANGEBYSCORE', members, now + 2000, '+inf')
redis.call('ZREMRANGEBYSCORE', members, '-inf', now - KEPT)
redis.call('ZADD', members, now, me)
redis.call('PEXPIRE', members, KEPT)
local alive = redis.call('ZCOUNT', members, now - ARGV[6], '+inf')
local all = redis.call('ZCARD', members)
return epoch .. struct.pack('<ddd', count, alive, all - alive)
