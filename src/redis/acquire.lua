-- The twin of bucket.rs: the same law, in the same order of operations, where the buckets live.
--
-- KEYS     the buckets, each once; then the epoch, where ARGV[2] says which it must be
-- ARGV[1]  doubles, little-endian. Of each key five: capacity and tokens per microsecond; then
--          the first demand on it, which takes from no other: cost, of how many callers (0: there
--          is none), max_wait. Then commands until the end, for which there is seldom need:
--            0 n max_wait m (index cost)*m   take, n times (n > 1 only where m = 1)
--            1 index tokens                  give back
--            2 index tokens                  charge
--            3 index                         full again
--            4 index                         look
--            5 index tokens                  no more than this
--            6 index                         empty it; where it is not full, stop here
--            7 index tokens wait big         charge, however deep the debt; the last of those who
--                                            were promised some of it, the largest of cost big,
--                                            has his turn after this wait
--            8 index tokens                  take up to so many ahead of any demand, of what is
--                                            over half the capacity, while nobody sleeps
--            9 index us                      grant nobody anything for so long
--            10 index tokens due from        undo a reservation that is due then, of tokens that
--                                            refill from then on: its caller has gone away
-- ARGV[2]  the epoch by which the caller knows these buckets
-- ARGV[3]  after an outage, the part of all processes that is back
-- Reply    nothing, where the epoch is another; else doubles: the server's time, from which on
--          waits count, or 0 where that of a bucket is ahead of it; per key: of its first demand how many go now, how many are granted, the wait of the last, when a
--          refused one may ask again; then the level without cancelled reservations, and the pool,
--          or, where nobody is granted anything, for how long, as a number below zero; per command that takes: the first four of these,
--          and which of its buckets decides (8: tokens, not demands). All times are microseconds.
--
-- A value is level, at, the largest capacity and the slowest rate by which any process has known
-- this bucket since it was last full, and until when Redis keeps it; then, while somebody sleeps
-- towards a promised turn, tail, big, pool; and, while nobody is granted anything, until when,
-- and by which rate the level counts the rest of that; and, of each cancelled reservation that
-- others stand behind, from when and until when its tokens refill, and how many they are.
-- A smaller quota's call must not let it expire before
-- the larger one's debt is paid, and can learn of that one only from the value. An expiry costs
-- Redis as much as the value does, so it is set for longer than needed, and then seldom.

local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local argument, nkeys, back = ARGV[1], #KEYS, tonumber(ARGV[3] or 1)
local stored = redis.call('MGET', unpack(KEYS))
if (ARGV[2] or '') ~= '' then
  local epoch = stored[nkeys]
  if not epoch or string.sub(epoch, 1, 8) ~= ARGV[2] then return '' end
  nkeys = nkeys - 1
end
local call, pack, unpack_d = redis.call, struct.pack, struct.unpack

-- Reservations that end so close to each other, in microseconds, are neighbours.
local NEIGHBOURS = 2
-- A bucket remembers so many cancelled reservations, of three numbers each.
local MOST_CANCELLED = 3 * 64

-- The first cancelled reservation that has room for c: which, from when on, and for how long.
local function gap_for(gaps, c, cap, at, held)
  if not gaps or c > cap then return end
  for i = 1, #gaps, 3 do
    local from, due, tokens = gaps[i], gaps[i + 1], gaps[i + 2]
    local length = (due - from) * (c / tokens)
    local start = math.max(from, held > at and held or at - length)
    if c <= tokens and start + length <= due + 0.5 then return i, start, length end
  end
end

local function remove_gap(gaps, i)
  for _ = 1, 3 do table.remove(gaps, i) end
end

-- Functions name what they use of `math`: to hand it in costs each call, and few run any.
local function take(c, n, max_wait, cap, rate, level, at, tail, big, pool, gaps, held)
  local ceil, floor, max, min = math.ceil, math.floor, math.max, math.min
  local function whole(have)
    if have < c then return 0 end
    local k = floor(have / c)
    if k * c > have then return k - 1 end
    return k
  end
  -- Over the whole capacity: when the bucket is full, into debt.
  local over, ready = max(c - cap, 0), 0
  if over > 0 then
    if level >= cap then ready = 1 end
  else
    ready = min(whole(level), n)
  end
  level = level - ready * c
  local pooled = min(whole(pool), n - ready)
  pool = pool - pooled * c
  local at_once, last, retry_after = ready + pooled, 0, 0
  local granted, left = at_once, n - at_once
  local gap, start, length
  if left > 0 and n == 1 then gap, start, length = gap_for(gaps, c, cap, at, held) end
  local gap_wait = gap and max(ceil(start + length - at), 0)
  if gap and gap_wait <= max_wait then
    local from, due, tokens = gaps[gap], gaps[gap + 1], gaps[gap + 2]
    local passed = tokens * ((start - from) / (due - from))
    tokens, from = tokens - (c + passed), start + length
    gaps[gap], gaps[gap + 2] = from, tokens
    if tokens <= 0 or from >= due then remove_gap(gaps, gap) end
    if passed > 0 and held <= at then
      pool = min(pool + passed, max(cap - big - max(level, 0), 0))
    end
    if gap_wait <= 0 then at_once = 1 end
    granted, last, big = 1, gap_wait, max(big, c)
  elseif left > 0 then
    local later = min(max(floor((level + over + max_wait * rate) / c), 0), left)
    if later > 0 and ceil((later * c - over - level) / rate) > max_wait then
      later = later - 1
    elseif later < left and ceil(((later + 1) * c - over - level) / rate) <= max_wait then
      later = later + 1
    end
    if later < left then
      local wait = ceil(((later + 1) * c - over - level) / rate)
      if gap then wait = min(wait, gap_wait) end
      retry_after = max(wait - max_wait, 1)
    end
    if later > 0 then
      granted = granted + later
      last = ceil((later * c - over - level) / rate)
      level = level - later * c
      tail = max(tail, at + last)
      big = max(big, min(c, cap))
    end
  end
  return at_once, granted, last, retry_after, level, tail, big, pool
end

local function keep(i, level, at, most, slowest, kept, tail, big, pool, held, rate, gaps)
  -- Full is the same as absent, and the server's clock may be up to a second behind `at`.
  local full = (most - level) / slowest
  if tail - at > full then full = tail - at end
  local us = at - now
  -- It refills in part until all are back, or are no longer waited for.
  if back < 1 then us = us + 10000000 end
  us = us + full
  local px
  if kept - now < us or kept - now > 4 * us then
    px = math.min(math.max(math.ceil(2 * us / 1000), 1), 9007199254740992)
    kept = now + (px - 1) * 1000
  end
  local value
  if gaps and gaps[1] then
    value = pack('<dddddddddd', level, at, most, slowest, kept, tail, big, pool, held,
      held > at and rate or 0)
    for j = 1, #gaps, 3 do
      value = value .. pack('<ddd', gaps[j], gaps[j + 1], gaps[j + 2])
    end
  elseif held > at then
    value = pack('<dddddddddd', level, at, most, slowest, kept, tail, big, pool, held, rate)
  elseif tail > at then
    value = pack('<dddddddd', level, at, most, slowest, kept, tail, big, pool)
  else
    value = pack('<ddddd', level, at, most, slowest, kept)
  end
  if px then
    call('SET', KEYS[i], value, 'PX', px)
  else
    call('SET', KEYS[i], value, 'KEEPTTL')
  end
end

local pos, size = 1, #argument
local alone = size == 40 * nkeys
local time, reply = now, { '' }
local key = not alone and {}

for i = 1, nkeys do
  local c, r, cost, n, max_wait
  c, r, cost, n, max_wait, pos = unpack_d('<ddddd', argument, pos)
  local value = stored[i]
  local length = value and #value
  local l, a, most, slowest, kept
  local tail, big, pool, held, by = 0, 0, 0, 0, 0
  local gaps
  if length == 40 then
    l, a, most, slowest, kept = unpack_d('<ddddd', value)
  elseif length == 64 then
    l, a, most, slowest, kept, tail, big, pool = unpack_d('<dddddddd', value)
  elseif length and length >= 80 and (length - 80) % 24 == 0 then
    l, a, most, slowest, kept, tail, big, pool, held, by = unpack_d('<dddddddddd', value)
    if length > 80 then
      gaps = {}
      for at = 81, length, 24 do
        local n = #gaps
        gaps[n + 1], gaps[n + 2], gaps[n + 3] = unpack_d('<ddd', value, at)
        local from, due, tokens = gaps[n + 1], gaps[n + 2], gaps[n + 3]
        if not (n < MOST_CANCELLED and from < due and from - from == 0 and due <= tail
            and due >= (gaps[n - 1] or -math.huge) and tokens > 0 and tokens <= most * 1e10) then
          by = -1
        end
      end
    end
  end
  -- What is no number, or infinite, leaves NaN. No call writes amounts below zero, a wait of 300
  -- years, or a debt of as many at a ten-thousandth of the rate.
  if not l or slowest <= 0 or most <= 0 or most > 1e100 or big < 0 or pool < 0 or by < 0
      or by > 1e100 or tail - a > 1e16 or held - a > 1e16 or l < -2 * most - 1e20 * (r + by)
      or (l - l) + (a - a) + (most - most) + (slowest - slowest)
      + (kept - kept) + (tail - tail) + (big - big) + (pool - pool) + (held - held) + (by - by) ~= 0 then
    -- Missing, of another type or length, or not what a call writes: full.
    l, a, most, slowest, kept, tail, big, pool, held = c, now, c, r, 0, 0, 0, 0, 0
    gaps = nil
  end
  if c > most then most = c end
  if r < slowest then slowest = r end

  -- visit
  local changed = false
  if a > now + 1000000 then
    local step = a - now
    tail, held = tail - step, held - step
    for j = 1, gaps and #gaps or 0, 3 do
      gaps[j], gaps[j + 1] = gaps[j] - step, gaps[j + 1] - step
    end
    a = now
    changed = true
  end
  -- A hold is as long by any rate.
  if held > a and by ~= r then l = l + (held - a) * (by - r) end
  local us = 0
  if now > a then
    us = now - a
    if back < 1 then
      local promised = math.max(tail - a, 0) * r * back
      local to_full = (1 - back) * c - promised - l
      local at_whole = math.min(us, math.max(to_full / (r * (1 - back)), 0))
      us = at_whole + (us - at_whole) * back
    end
    a = now
  end
  l = l + us * r
  if l > c then l = c end
  while gaps and gaps[2] and gaps[2] <= a do
    pool = pool + gaps[3]
    remove_gap(gaps, 1)
  end
  if pool > 0 then
    local since = math.max(a - tail, 0) * r * back
    pool = math.min(pool, math.max(c - big - math.max(l - since, 0), 0))
  end
  if tail <= a then
    for j = 3, gaps and #gaps or 0, 3 do pool = pool + gaps[j] end
    gaps = nil
    l = l + pool
    if l > c then l = c end
    tail, big, pool = 0, 0, 0
  end
  if held > a then
    l, pool = math.min(l, (a - held) * r), 0
  else
    held = 0
  end
  if a > now then time = 0 end

  local at_once, granted, last, retry_after = n, n, 0, 0
  -- Zero takes nothing.
  if n > 0 and cost > 0 then
    if cost <= c and l >= cost and (n == 1 or l / cost >= n + 1) then
      -- All of them, as most are.
      l = l - n * cost
      changed = true
    else
      at_once, granted, last, retry_after, l, tail, big, pool =
        take(cost, n, max_wait, c, r, l, a, tail, big, pool, gaps, held)
      if granted > 0 then changed = true end
    end
  end
  if alone then
    if changed then keep(i, l, a, most, slowest, kept, tail, big, pool, held, r, gaps) end
    for j = 3, gaps and #gaps or 0, 3 do l = l + gaps[j] end
    reply[i + 1] = pack('<dddddd', at_once, granted, last, retry_after, l, held > a and a - held or pool)
  else
    key[i] = {
      cap = c, rate = r, level = l, at = a, most = most, slowest = slowest, kept = kept,
      tail = tail, big = big, pool = pool, held = held, gaps = gaps, changed = changed,
      first = pack('<dddd', at_once, granted, last, retry_after),
    }
  end
end
reply[1] = pack('<d', time)
if alone then return table.concat(reply) end

local ceil, max, min = math.ceil, math.max, math.min

local function quote(k, c)
  local need = min(c, k.cap)
  if k.level >= need or k.pool >= c then return 0 end
  local gap, start, length = gap_for(k.gaps, c, k.cap, k.at, k.held)
  if gap then return max(ceil(start + length - k.at), 0) end
  return ceil((need - k.level) / k.rate)
end

local function take_from(k, c, n, max_wait)
  if c <= 0 then return n, n, 0, 0 end
  local at_once, granted, last, retry_after
  at_once, granted, last, retry_after, k.level, k.tail, k.big, k.pool =
    take(c, n, max_wait, k.cap, k.rate, k.level, k.at, k.tail, k.big, k.pool, k.gaps, k.held)
  if granted > 0 then k.changed = true end
  return at_once, granted, last, retry_after
end

local function give_back(k, x)
  if k.held > k.at then
    -- It would pull the end of the hold forward, or go out as a burst after it.
  elseif k.tail <= k.at then
    k.level = min(k.cap, k.level + x)
  else
    k.pool = min(k.pool + x, max(k.cap - k.big - max(k.level, 0), 0))
  end
end

-- Keeps a cancelled reservation of the middle, as one with its neighbours.
local function remember(k, from, due, tokens)
  if from >= due then return end
  local gaps = k.gaps or {}
  k.gaps = gaps
  local next = 1
  while gaps[next] and gaps[next + 1] < due do next = next + 3 end
  local before, after = next > 1, gaps[next] ~= nil
  if before and math.abs(from - gaps[next - 2]) > NEIGHBOURS then before = false end
  if after and math.abs(gaps[next] - due) > NEIGHBOURS then after = false end
  if before and after then
    gaps[next - 2] = gaps[next + 1]
    gaps[next - 1] = gaps[next - 1] + (tokens + gaps[next + 2])
    remove_gap(gaps, next)
  elseif before then
    gaps[next - 2], gaps[next - 1] = due, gaps[next - 1] + tokens
  elseif after then
    gaps[next], gaps[next + 2] = from, gaps[next + 2] + tokens
  elseif #gaps < MOST_CANCELLED then
    table.insert(gaps, next, from)
    table.insert(gaps, next + 1, due)
    table.insert(gaps, next + 2, tokens)
  end
end

-- The last of the queue is undone as if it had never been made, and then the one before it, if
-- that is cancelled as well.
local function undo(k, tokens, due, from)
  if due <= k.at then return give_back(k, max(tokens - (k.at - due) * k.rate, 0)) end
  if due <= k.held or due > k.tail + NEIGHBOURS then return end
  if due < k.tail - NEIGHBOURS then
    if tokens <= k.cap then remember(k, from, due, tokens) end
    return
  end
  local gaps = k.gaps or {}
  k.level, k.tail = min(k.cap, k.level + tokens), from
  while gaps[1] and gaps[#gaps - 1] >= k.tail - NEIGHBOURS do
    local last = #gaps - 2
    k.level, k.tail = min(k.cap, k.level + gaps[last + 2]), gaps[last]
    remove_gap(gaps, last)
  end
  if k.tail <= k.at + NEIGHBOURS then
    for j = 3, #gaps, 3 do k.pool = k.pool + gaps[j] end
    k.level, k.gaps = min(k.cap, k.level + k.pool), nil
    k.tail, k.big, k.pool = 0, 0, 0
  end
  if k.held > k.at then k.level, k.pool = min(k.level, (k.at - k.held) * k.rate), 0 end
end

local taken = {}
while pos <= size do
  local op
  op, pos = unpack_d('<d', argument, pos)
  if op == 0 then
    local n, max_wait, m
    n, max_wait, m, pos = unpack_d('<ddd', argument, pos)
    if m == 1 then
      local i, c
      i, c, pos = unpack_d('<dd', argument, pos)
      local at_once, granted, last, retry_after = take_from(key[i], c, n, max_wait)
      taken[#taken + 1] = pack('<ddddd', at_once, granted, last, retry_after, 1)
    else
      local of, cost, which, wait = {}, {}, 1, -1
      for j = 1, m do
        local i
        i, cost[j], pos = unpack_d('<dd', argument, pos)
        of[j] = key[i]
        local quoted = quote(of[j], cost[j])
        if quoted > wait then which, wait = j, quoted end
      end
      if wait <= 0 then
        for j = 1, m do take_from(of[j], cost[j], 1, 0) end
        taken[#taken + 1] = pack('<ddddd', 1, 1, 0, 0, 1)
      elseif wait <= max_wait then
        take_from(of[which], cost[which], 1, max_wait)
        taken[#taken + 1] = pack('<ddddd', 0, 1, wait, 0, which)
      else
        taken[#taken + 1] = pack('<ddddd', 0, 0, 0, max(wait - max_wait, 1), which)
      end
    end
  else
    local i, x
    i, pos = unpack_d('<d', argument, pos)
    local k = key[i]
    if op == 8 then
      x, pos = unpack_d('<d', argument, pos)
      local ahead = 0
      if k.tail <= k.at then ahead = max(min(x, math.floor(k.level - k.cap / 2)), 0) end
      if ahead > 0 then
        k.level = k.level - ahead
        k.changed = true
      end
      taken[#taken + 1] = pack('<ddddd', ahead, ahead, 0, 0, 1)
    elseif op ~= 4 then
      if op == 6 and k.level < k.cap then break end
      k.changed = true
    end
    if op == 6 then
      k.level = 0
    elseif op == 3 then
      k.level, k.tail, k.big, k.pool, k.held, k.gaps = k.cap, 0, 0, 0, 0, nil
    elseif op ~= 4 and op ~= 8 then
      x, pos = unpack_d('<d', argument, pos)
      if op == 5 then
        k.level, k.pool = min(k.level, x), min(k.pool, max(x, 0))
      elseif op == 9 then
        k.held = max(k.held, k.at + x)
        if k.held > k.at then
          while k.gaps and k.gaps[2] and k.gaps[2] <= k.held do remove_gap(k.gaps, 1) end
          k.level, k.pool = min(k.level, (k.at - k.held) * k.rate), 0
        end
      elseif op == 1 then
        give_back(k, x)
      elseif op == 10 then
        local due, from
        due, from, pos = unpack_d('<dd', argument, pos)
        undo(k, x, due, from)
      else
        local from_pool = min(k.pool, x)
        k.pool = k.pool - from_pool
        local level = k.level - (x - from_pool)
        if op == 2 then
          level = max(level, -k.cap - max(k.tail - k.at, 0) * k.rate)
        else
          local wait, biggest
          wait, biggest, pos = unpack_d('<dd', argument, pos)
          if wait > 0 then
            k.tail, k.big = max(k.tail, k.at + wait), max(k.big, biggest)
          end
        end
        k.level = min(k.level, level)
      end
    end
  end
end

for i = 1, nkeys do
  local k = key[i]
  if k.changed then
    keep(i, k.level, k.at, k.most, k.slowest, k.kept, k.tail, k.big, k.pool, k.held, k.rate, k.gaps)
  end
  for j = 3, k.gaps and #k.gaps or 0, 3 do k.level = k.level + k.gaps[j] end
  reply[#reply + 1] = k.first
  reply[#reply + 1] = pack('<dd', k.level, k.held > k.at and k.at - k.held or k.pool)
end
return table.concat(reply) .. table.concat(taken)
