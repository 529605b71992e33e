-- Writes packed rows unless what is stored is newer; returns how many were written.
--
-- KEYS: none, with the keys inside the blob (a single server); or the one row's key (Cluster).
-- ARGV[1]: rows, each as uint32 key length, uint32 row length, key, row
-- ARGV[2]: now, milliseconds since 1970
-- ARGV[3]: milliseconds that a row lives after its event time; "" for ever
-- ARGV[4]: milliseconds that a key lives after it was written; "" for ever
--
-- A row begins with its event time and its created time, both int64 microseconds. They are
-- compared as two 32-bit halves, because a Lua number cannot hold 64 bits exactly.
-- Rows are read and written in batches: calling Redis costs more than what it does per row.
local blob, now = ARGV[1], tonumber(ARGV[2])
local after_event, after_write = tonumber(ARGV[3]), tonumber(ARGV[4])
local read, call, sub = struct.unpack, redis.call, string.sub
local BATCH = 500
local size, at, written = #blob, 1, 0

-- Whether the row at a place of the blob replaces the stored one: newer, or equally old.
local function replaces(row_at, stored, stored_at)
  local low, high, c_low, c_high = read('<I4i4I4i4', blob, row_at)
  local s_low, s_high, sc_low, sc_high = read('<I4i4I4i4', stored, stored_at)
  if high ~= s_high then return high > s_high end
  if low ~= s_low then return low > s_low end
  if c_high ~= sc_high then return c_high > sc_high end
  return c_low >= sc_low
end

-- Whole seconds, and each written out once: formatting a number costs as much as a SET.
local texts = {}
local function seconds_to_live(row_at)
  local lives = after_write
  if after_event then
    local low, high = read('<I4i4', blob, row_at)
    local left = (high * 4294967296 + low) / 1000 + after_event - now
    if not lives or left < lives then lives = left end
  end
  local seconds = math.max(1, math.ceil(lives / 1000))
  local text = texts[seconds]
  if not text then
    text = string.format('%.0f', seconds)
    texts[seconds] = text
  end
  return text
end

while at <= size do
  local keys, starts, ends, place_of, n = {}, {}, {}, {}, 0
  while at <= size and n < BATCH do
    local key_bytes, row_bytes = read('<I4I4', blob, at)
    local row_at = at + 8 + key_bytes
    local key = KEYS[1] or sub(blob, at + 8, row_at - 1)
    at = row_at + row_bytes
    local place = place_of[key]
    if not place then
      n = n + 1
      place_of[key], keys[n], starts[n], ends[n] = n, key, row_at, at - 1
    elseif replaces(row_at, blob, starts[place]) then
      starts[place], ends[place] = row_at, at - 1
    end
  end
  local stored = call('MGET', unpack(keys, 1, n))
  local pairs_to_set, m = {}, 0
  for i = 1, n do
    local old = stored[i]
    if not old or #old < 16 or replaces(starts[i], old, 1) then
      local row = sub(blob, starts[i], ends[i])
      if after_event or after_write then
        call('SET', keys[i], row, 'EX', seconds_to_live(starts[i]))
      else
        pairs_to_set[m + 1], pairs_to_set[m + 2] = keys[i], row
        m = m + 2
      end
      written = written + 1
    end
  end
  if m > 0 then call('MSET', unpack(pairs_to_set, 1, m)) end
end
return written
