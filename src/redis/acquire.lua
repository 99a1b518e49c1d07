-- Decides requests and applies operations to token buckets. The model is that of bucket/mod.rs: the
-- same operations in the same order, so that both agree to the last bit.
--
-- All times are microseconds, all amounts are tokens, and all numbers are little-endian doubles.
--
-- KEYS     the buckets, each once; then the epoch's key, if ARGV[2] is not empty
-- ARGV[1]  for each bucket five numbers: capacity and tokens per microsecond; then the first
--          request for it, which takes from no other bucket: cost, n (how many callers; 0: there is
--          none), max_wait. The rest is steps, which most calls do not have; each is a code, a
--          bucket (counted from 1) and further numbers:
--            0 n max_wait m (bucket cost)*m
--                                      n requests; each takes from all m buckets or from none
--                                      (n > 1 only if m = 1)
--            1 bucket tokens           give back
--            2 bucket tokens           charge, down to a debt of the capacity and what is reserved
--            3 bucket                  reset: full, not paused
--            4 bucket                  inspect: change nothing
--            5 bucket tokens           cap the level
--            6 bucket                  empty it if it is full; otherwise skip the rest of the call
--            7 bucket tokens wait largest
--                                      write back: charge without a limit to the debt; `wait` is
--                                      the time until the last reservation among these tokens is
--                                      due, `largest` is their largest cost
--            8 bucket tokens           lease: take up to this many from the upper half, unless
--                                      reservations are outstanding
--            9 bucket us               pause: grant nothing for so long
--            10 bucket tokens due from undo a reservation: its tokens refill from `from` and are
--                                      due at `due`
-- ARGV[2]  the epoch that the caller has read
-- ARGV[3]  after an outage, the fraction of peers that have recovered, as text
--
-- Reply    empty if the epoch is another one, and then nothing was changed. Otherwise: the server's
--          time, from which waits count, or 0 if the time of a bucket is ahead of it. Then for each
--          bucket: of the first request, how many callers are granted at once, how many in all, the
--          wait of the last one, and when a rejected one may retry; the level without gaps; and the
--          returned tokens, or, if the bucket is paused, the rest of the pause as a negative
--          number. Then for each step of code 0 or 8: the first four of these (8: tokens instead of
--          callers), and which of its buckets decided (counted from 1).
--
-- Value    level; at, the time of that level; the largest capacity and the slowest rate with which
--          any caller has used the bucket since it was last full; until when Redis keeps the
--          value. While reservations are outstanding, also when the last one is due, their largest
--          cost, and the tokens returned meanwhile. While the bucket is paused or has gaps, also
--          until when it is paused, and the rate by which the level counts the rest of the pause.
--          Then each gap: a cancelled reservation with others behind it (from, due, tokens).
--
-- A call with a smaller quota must not let a value expire before debt under a larger quota has
-- refilled. So the value contains the largest capacity and the slowest rate. Setting an expiry
-- costs Redis as much as writing the value. It is set for longer than needed, so that it is set
-- seldom.

local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local argument, count, recovered = ARGV[1], #KEYS, tonumber(ARGV[3] or 1)
local stored = redis.call('MGET', unpack(KEYS))
if (ARGV[2] or '') ~= '' then
  local epoch = stored[count]
  if not epoch or string.sub(epoch, 1, 8) ~= ARGV[2] then return '' end
  count = count - 1
end
local call, pack, unpack_d = redis.call, struct.pack, struct.unpack

-- Reservations are adjacent if one begins at most this long before or after the other is due.
local ADJACENT_US = 2
-- A bucket stores at most 64 gaps, each of three numbers.
local MAX_GAPS = 3 * 64

-- Returns the first gap that has room for cost: its index, and from when and how long the cost
-- fills it.
local function gap_for(gaps, cost, cap, at, paused_until)
  if not gaps or cost > cap then return end
  for i = 1, #gaps, 3 do
    local from, due, tokens = gaps[i], gaps[i + 1], gaps[i + 2]
    local length = (due - from) * (cost / tokens)
    local start = math.max(from, paused_until > at and paused_until or at - length)
    if cost <= tokens and start + length <= due + 0.5 then return i, start, length end
  end
end

local function remove_gap(gaps, i)
  for _ = 1, 3 do table.remove(gaps, i) end
end

-- The functions of `math` are looked up in this function: locals outside would cost every call, and
-- most calls do not use this function.
local function take(cost, n, max_wait, cap, rate, level, at, last_due, largest, returned, gaps,
    paused_until)
  local ceil, floor, max, min = math.ceil, math.floor, math.max, math.min
  local function whole(have)
    if have < cost then return 0 end
    local k = floor(have / cost)
    if k * cost > have then return k - 1 end
    return k
  end
  -- A cost over the capacity is granted by a full bucket, into debt.
  local over, ready = max(cost - cap, 0), 0
  if over > 0 then
    if level >= cap then ready = 1 end
  else
    ready = min(whole(level), n)
  end
  level = level - ready * cost
  local from_returned = min(whole(returned), n - ready)
  returned = returned - from_returned * cost
  local at_once, last, retry_after = ready + from_returned, 0, 0
  local granted, left = at_once, n - at_once
  local gap, start, length
  if left > 0 and n == 1 then gap, start, length = gap_for(gaps, cost, cap, at, paused_until) end
  local gap_wait = gap and max(ceil(start + length - at), 0)
  if gap and gap_wait <= max_wait then
    local from, due, tokens = gaps[gap], gaps[gap + 1], gaps[gap + 2]
    local passed = tokens * ((start - from) / (due - from))
    tokens, from = tokens - (cost + passed), start + length
    gaps[gap], gaps[gap + 2] = from, tokens
    if tokens <= 0 or from >= due then remove_gap(gaps, gap) end
    if passed > 0 and paused_until <= at then
      returned = min(returned + passed, max(cap - largest - max(level, 0), 0))
    end
    if gap_wait <= 0 then at_once = 1 end
    granted, last, largest = 1, gap_wait, max(largest, cost)
  elseif left > 0 then
    local later = min(max(floor((level + over + max_wait * rate) / cost), 0), left)
    if later > 0 and ceil((later * cost - over - level) / rate) > max_wait then
      later = later - 1
    elseif later < left and ceil(((later + 1) * cost - over - level) / rate) <= max_wait then
      later = later + 1
    end
    if later < left then
      local wait = ceil(((later + 1) * cost - over - level) / rate)
      if gap then wait = min(wait, gap_wait) end
      retry_after = max(wait - max_wait, 1)
    end
    if later > 0 then
      granted = granted + later
      last = ceil((later * cost - over - level) / rate)
      level = level - later * cost
      last_due = max(last_due, at + last)
      largest = max(largest, min(cost, cap))
    end
  end
  return at_once, granted, last, retry_after, level, last_due, largest, returned
end

local function write(i, level, at, max_cap, min_rate, kept_until, last_due, largest, returned,
    paused_until, rate, gaps)
  -- A full bucket equals an absent one. The server's clock may be up to a second behind `at`.
  local full = (max_cap - level) / min_rate
  if last_due - at > full then full = last_due - at end
  local us = at - now
  -- Until all peers have recovered, or are no longer expected, the bucket refills more slowly.
  if recovered < 1 then us = us + 10000000 end
  us = us + full
  local px
  if kept_until - now < us or kept_until - now > 4 * us then
    px = math.min(math.max(math.ceil(2 * us / 1000), 1), 9007199254740992)
    kept_until = now + (px - 1) * 1000
  end
  local value
  if gaps and gaps[1] then
    value = pack('<dddddddddd', level, at, max_cap, min_rate, kept_until, last_due, largest,
      returned, paused_until, paused_until > at and rate or 0)
    for j = 1, #gaps, 3 do
      value = value .. pack('<ddd', gaps[j], gaps[j + 1], gaps[j + 2])
    end
  elseif paused_until > at then
    value = pack('<dddddddddd', level, at, max_cap, min_rate, kept_until, last_due, largest,
      returned, paused_until, rate)
  elseif last_due > at then
    value = pack('<dddddddd', level, at, max_cap, min_rate, kept_until, last_due, largest,
      returned)
  else
    value = pack('<ddddd', level, at, max_cap, min_rate, kept_until)
  end
  if px then
    call('SET', KEYS[i], value, 'PX', px)
  else
    call('SET', KEYS[i], value, 'KEEPTTL')
  end
end

local pos, size = 1, #argument
local only_firsts = size == 40 * count
local time, reply = now, { '' }
local buckets = not only_firsts and {}

for i = 1, count do
  local cap, rate, cost, n, max_wait
  cap, rate, cost, n, max_wait, pos = unpack_d('<ddddd', argument, pos)
  local value = stored[i]
  local length = value and #value
  local level, at, max_cap, min_rate, kept_until
  local last_due, largest, returned, paused_until, pause_rate = 0, 0, 0, 0, 0
  local gaps
  if length == 40 then
    level, at, max_cap, min_rate, kept_until = unpack_d('<ddddd', value)
  elseif length == 64 then
    level, at, max_cap, min_rate, kept_until, last_due, largest, returned =
      unpack_d('<dddddddd', value)
  elseif length and length >= 80 and (length - 80) % 24 == 0 then
    level, at, max_cap, min_rate, kept_until, last_due, largest, returned, paused_until,
      pause_rate = unpack_d('<dddddddddd', value)
    if length > 80 then
      gaps = {}
      for offset = 81, length, 24 do
        local n = #gaps
        gaps[n + 1], gaps[n + 2], gaps[n + 3] = unpack_d('<ddd', value, offset)
        local from, due, tokens = gaps[n + 1], gaps[n + 2], gaps[n + 3]
        if not (n < MAX_GAPS and from < due and from - from == 0 and due <= last_due
            and due >= (gaps[n - 1] or -math.huge) and tokens > 0 and tokens <= max_cap * 1e10) then
          pause_rate = -1
        end
      end
    end
  end
  -- x - x is zero, unless x is infinite or not a number. No call writes a negative amount, a wait
  -- of 300 years, or a debt that takes 300 years to refill at a ten-thousandth of the rate.
  if not level or min_rate <= 0 or max_cap <= 0 or max_cap > 1e100 or largest < 0 or returned < 0
      or pause_rate < 0 or pause_rate > 1e100 or last_due - at > 1e16 or paused_until - at > 1e16
      or level < -2 * max_cap - 1e20 * (rate + pause_rate)
      or (level - level) + (at - at) + (max_cap - max_cap) + (min_rate - min_rate)
      + (kept_until - kept_until) + (last_due - last_due) + (largest - largest)
      + (returned - returned) + (paused_until - paused_until) + (pause_rate - pause_rate) ~= 0 then
    -- Missing, of another type or length, or not written by a call: full.
    level, at, max_cap, min_rate, kept_until, last_due, largest, returned, paused_until =
      cap, now, cap, rate, 0, 0, 0, 0, 0
    gaps = nil
  end
  if cap > max_cap then max_cap = cap end
  if rate < min_rate then min_rate = rate end

  -- Refills the bucket. A time that is far ahead means that the server's clock was set back.
  local changed = false
  if at > now + 1000000 then
    local step = at - now
    last_due, paused_until = last_due - step, paused_until - step
    for j = 1, gaps and #gaps or 0, 3 do
      gaps[j], gaps[j + 1] = gaps[j] - step, gaps[j + 1] - step
    end
    at = now
    changed = true
  end
  -- A change of the rate does not change the length of a pause.
  if paused_until > at and pause_rate ~= rate then
    level = level + (paused_until - at) * (pause_rate - rate)
  end
  local us = 0
  if now > at then
    us = now - at
    if recovered < 1 then
      local reserved = math.max(last_due - at, 0) * rate * recovered
      local to_full = (1 - recovered) * cap - reserved - level
      local at_full_rate = math.min(us, math.max(to_full / (rate * (1 - recovered)), 0))
      us = at_full_rate + (us - at_full_rate) * recovered
    end
    at = now
  end
  level = level + us * rate
  if level > cap then level = cap end
  while gaps and gaps[2] and gaps[2] <= at do
    returned = returned + gaps[3]
    remove_gap(gaps, 1)
  end
  if returned > 0 then
    local since = math.max(at - last_due, 0) * rate * recovered
    returned = math.min(returned, math.max(cap - largest - math.max(level - since, 0), 0))
  end
  if last_due <= at then
    for j = 3, gaps and #gaps or 0, 3 do returned = returned + gaps[j] end
    gaps = nil
    level = level + returned
    if level > cap then level = cap end
    last_due, largest, returned = 0, 0, 0
  end
  if paused_until > at then
    level, returned = math.min(level, (at - paused_until) * rate), 0
  else
    paused_until = 0
  end
  if at > now then time = 0 end

  local at_once, granted, last, retry_after = n, n, 0, 0
  -- A cost of zero takes nothing.
  if n > 0 and cost > 0 then
    if cost <= cap and level >= cost and (n == 1 or level / cost >= n + 1) then
      -- The common case: all are granted at once.
      level = level - n * cost
      changed = true
    else
      at_once, granted, last, retry_after, level, last_due, largest, returned =
        take(cost, n, max_wait, cap, rate, level, at, last_due, largest, returned, gaps,
          paused_until)
      if granted > 0 then changed = true end
    end
  end
  if only_firsts then
    if changed then
      write(i, level, at, max_cap, min_rate, kept_until, last_due, largest, returned, paused_until,
        rate, gaps)
    end
    for j = 3, gaps and #gaps or 0, 3 do level = level + gaps[j] end
    reply[i + 1] = pack('<dddddd', at_once, granted, last, retry_after, level,
      paused_until > at and at - paused_until or returned)
  else
    buckets[i] = {
      cap = cap, rate = rate, level = level, at = at, max_cap = max_cap, min_rate = min_rate,
      kept_until = kept_until, last_due = last_due, largest = largest, returned = returned,
      paused_until = paused_until, gaps = gaps, changed = changed,
      first = pack('<dddd', at_once, granted, last, retry_after),
    }
  end
end
reply[1] = pack('<d', time)
if only_firsts then return table.concat(reply) end

local ceil, max, min = math.ceil, math.max, math.min

local function quote(bucket, cost)
  local need = min(cost, bucket.cap)
  if bucket.level >= need or bucket.returned >= cost then return 0 end
  local gap, start, length =
    gap_for(bucket.gaps, cost, bucket.cap, bucket.at, bucket.paused_until)
  if gap then return max(ceil(start + length - bucket.at), 0) end
  return ceil((need - bucket.level) / bucket.rate)
end

local function take_from(bucket, cost, n, max_wait)
  if cost <= 0 then return n, n, 0, 0 end
  local at_once, granted, last, retry_after
  at_once, granted, last, retry_after, bucket.level, bucket.last_due, bucket.largest,
    bucket.returned =
    take(cost, n, max_wait, bucket.cap, bucket.rate, bucket.level, bucket.at, bucket.last_due,
      bucket.largest, bucket.returned, bucket.gaps, bucket.paused_until)
  if granted > 0 then bucket.changed = true end
  return at_once, granted, last, retry_after
end

local function give_back(bucket, tokens)
  if bucket.paused_until > bucket.at then
    -- Dropped: the tokens would end the pause early, or be granted as a burst after it.
  elseif bucket.last_due <= bucket.at then
    bucket.level = min(bucket.cap, bucket.level + tokens)
  else
    local room = max(bucket.cap - bucket.largest - max(bucket.level, 0), 0)
    bucket.returned = min(bucket.returned + tokens, room)
  end
end

-- Stores a reservation that was cancelled in the middle of the queue, joined with the gaps adjacent
-- to it.
local function remember(bucket, from, due, tokens)
  if from >= due then return end
  local gaps = bucket.gaps or {}
  bucket.gaps = gaps
  local next = 1
  while gaps[next] and gaps[next + 1] < due do next = next + 3 end
  local before, after = next > 1, gaps[next] ~= nil
  if before and math.abs(from - gaps[next - 2]) > ADJACENT_US then before = false end
  if after and math.abs(gaps[next] - due) > ADJACENT_US then after = false end
  if before and after then
    gaps[next - 2] = gaps[next + 1]
    gaps[next - 1] = gaps[next - 1] + (tokens + gaps[next + 2])
    remove_gap(gaps, next)
  elseif before then
    gaps[next - 2], gaps[next - 1] = due, gaps[next - 1] + tokens
  elseif after then
    gaps[next], gaps[next + 2] = from, gaps[next + 2] + tokens
  elseif #gaps < MAX_GAPS then
    table.insert(gaps, next, from)
    table.insert(gaps, next + 1, due)
    table.insert(gaps, next + 2, tokens)
  end
end

-- Undoes the last reservation of the queue as if it had never been made, and then the one before
-- it, if that is a gap.
local function undo(bucket, tokens, due, from)
  if due <= bucket.at then
    -- Tokens that have refilled since may be used already.
    return give_back(bucket, max(tokens - (bucket.at - due) * bucket.rate, 0))
  end
  if due <= bucket.paused_until or due > bucket.last_due + ADJACENT_US then return end
  if due < bucket.last_due - ADJACENT_US then
    if tokens <= bucket.cap then remember(bucket, from, due, tokens) end
    return
  end
  local gaps = bucket.gaps or {}
  bucket.level, bucket.last_due = min(bucket.cap, bucket.level + tokens), from
  while gaps[1] and gaps[#gaps - 1] >= bucket.last_due - ADJACENT_US do
    local last = #gaps - 2
    bucket.level = min(bucket.cap, bucket.level + gaps[last + 2])
    bucket.last_due = gaps[last]
    remove_gap(gaps, last)
  end
  if bucket.last_due <= bucket.at + ADJACENT_US then
    for j = 3, #gaps, 3 do bucket.returned = bucket.returned + gaps[j] end
    bucket.level, bucket.gaps = min(bucket.cap, bucket.level + bucket.returned), nil
    bucket.last_due, bucket.largest, bucket.returned = 0, 0, 0
  end
  if bucket.paused_until > bucket.at then
    bucket.level = min(bucket.level, (bucket.at - bucket.paused_until) * bucket.rate)
    bucket.returned = 0
  end
end

local answers = {}
while pos <= size do
  local op
  op, pos = unpack_d('<d', argument, pos)
  if op == 0 then -- take
    local n, max_wait, m
    n, max_wait, m, pos = unpack_d('<ddd', argument, pos)
    if m == 1 then
      local i, cost
      i, cost, pos = unpack_d('<dd', argument, pos)
      local at_once, granted, last, retry_after = take_from(buckets[i], cost, n, max_wait)
      answers[#answers + 1] = pack('<ddddd', at_once, granted, last, retry_after, 1)
    else
      local named, cost, which, wait = {}, {}, 1, -1
      for j = 1, m do
        local i
        i, cost[j], pos = unpack_d('<dd', argument, pos)
        named[j] = buckets[i]
        local quoted = quote(named[j], cost[j])
        if quoted > wait then which, wait = j, quoted end
      end
      if wait <= 0 then
        for j = 1, m do take_from(named[j], cost[j], 1, 0) end
        answers[#answers + 1] = pack('<ddddd', 1, 1, 0, 0, 1)
      elseif wait <= max_wait then
        take_from(named[which], cost[which], 1, max_wait)
        answers[#answers + 1] = pack('<ddddd', 0, 1, wait, 0, which)
      else
        answers[#answers + 1] = pack('<ddddd', 0, 0, 0, max(wait - max_wait, 1), which)
      end
    end
  else
    local i, x
    i, pos = unpack_d('<d', argument, pos)
    local bucket, changed = buckets[i], true
    if op == 1 then -- give back
      x, pos = unpack_d('<d', argument, pos)
      give_back(bucket, x)
    elseif op == 2 or op == 7 then -- charge, write back
      x, pos = unpack_d('<d', argument, pos)
      local from_returned = min(bucket.returned, x)
      bucket.returned = bucket.returned - from_returned
      local level = bucket.level - (x - from_returned)
      if op == 2 then
        level = max(level, -bucket.cap - max(bucket.last_due - bucket.at, 0) * bucket.rate)
      else
        local wait, largest
        wait, largest, pos = unpack_d('<dd', argument, pos)
        if wait > 0 then
          bucket.last_due = max(bucket.last_due, bucket.at + wait)
          bucket.largest = max(bucket.largest, largest)
        end
      end
      bucket.level = min(bucket.level, level)
    elseif op == 3 then -- reset
      bucket.level, bucket.last_due, bucket.largest = bucket.cap, 0, 0
      bucket.returned, bucket.paused_until, bucket.gaps = 0, 0, nil
    elseif op == 4 then -- inspect
      changed = false
    elseif op == 5 then -- cap the level
      x, pos = unpack_d('<d', argument, pos)
      bucket.level, bucket.returned = min(bucket.level, x), min(bucket.returned, max(x, 0))
    elseif op == 6 then -- empty it, or stop
      if bucket.level < bucket.cap then break end
      bucket.level = 0
    elseif op == 8 then -- lease
      x, pos = unpack_d('<d', argument, pos)
      local ahead = 0
      if bucket.last_due <= bucket.at then
        ahead = max(min(x, math.floor(bucket.level - bucket.cap / 2)), 0)
      end
      bucket.level, changed = bucket.level - ahead, ahead > 0
      answers[#answers + 1] = pack('<ddddd', ahead, ahead, 0, 0, 1)
    elseif op == 9 then -- pause
      x, pos = unpack_d('<d', argument, pos)
      bucket.paused_until = max(bucket.paused_until, bucket.at + x)
      if bucket.paused_until > bucket.at then
        local gaps = bucket.gaps
        while gaps and gaps[2] and gaps[2] <= bucket.paused_until do remove_gap(gaps, 1) end
        bucket.level = min(bucket.level, (bucket.at - bucket.paused_until) * bucket.rate)
        bucket.returned = 0
      end
    else -- undo
      local due, from
      x, due, from, pos = unpack_d('<ddd', argument, pos)
      undo(bucket, x, due, from)
    end
    if changed then bucket.changed = true end
  end
end

for i = 1, count do
  local bucket = buckets[i]
  if bucket.changed then
    write(i, bucket.level, bucket.at, bucket.max_cap, bucket.min_rate, bucket.kept_until,
      bucket.last_due, bucket.largest, bucket.returned, bucket.paused_until, bucket.rate,
      bucket.gaps)
  end
  local gaps = bucket.gaps
  for j = 3, gaps and #gaps or 0, 3 do bucket.level = bucket.level + gaps[j] end
  reply[#reply + 1] = bucket.first
  reply[#reply + 1] = pack('<dd', bucket.level,
    bucket.paused_until > bucket.at and bucket.at - bucket.paused_until or bucket.returned)
end
return table.concat(reply) .. table.concat(answers)
