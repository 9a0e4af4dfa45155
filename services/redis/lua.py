"""Every move of the queue over more than one key: each one script, so atomic under any kill.

An item is on at most one stream entry at a time, and lives as long as it has one: the first to
remove its entry has ended it. `seen:{stream}:{id}` holds that entry's id, so that the worker that
finishes the item finds it even where it was put back under a new one. When the item has ended,
`seen` stays for ARGV[2] seconds, so that it is not enqueued again; an attempt renews it. For as
long `done:{stream}:{id}` says that it is among the dead. So Redis holds what lives, the guards of
what ended in that time, and MAX_DEAD dead items.

Whatever is in Redis is data, and somebody else may have put it there. A stream of another type ends
a move before it writes (`touch`), a guard of another type counts as none, and an entry without
`id` or `body` goes to the dead (`SET_ASIDE`).

`PRELUDE` goes before each script. ARGV[1] is the key prefix of the run and keys are built from it;
Redis Cluster is not supported.
"""

MAX_DEAD = 1000  # `bury` below has it too
"""Dead items that are kept; the oldest go first. The trainer's ledger names all of them."""

PRELUDE = """
local prefix, ttl = ARGV[1], ARGV[2]
local function key(kind, stream, id) return prefix .. kind .. ':' .. stream .. ':' .. id end
local function field(entry, name)
  for i = 1, #entry[2], 2 do if entry[2][i] == name then return entry[2][i + 1] end end
end
-- Raises WRONGTYPE where one of the keys is no stream, before anything is written.
local function touch(...)
  for _, stream in ipairs({...}) do redis.call('XLEN', prefix .. stream) end
end
local function guard(key)
  local found = redis.pcall('GET', key)
  return type(found) == 'string' and found or nil
end
local function texts(key)
  local found = redis.pcall('LRANGE', key, 0, -1)
  return found.err and {} or found
end
local function add(stream, id, body)
  local entry = redis.call('XADD', prefix .. stream, '*', 'id', id, 'body', body)
  redis.call('SET', key('seen', stream, id), entry)
end
local function remove(stream, group, entry)
  redis.pcall('XACK', prefix .. stream, group, entry)
  local removed = redis.pcall('XDEL', prefix .. stream, entry)
  return type(removed) == 'number' and removed or 0  -- a guard may hold what is no entry's id
end
-- Ends an item once. False when it had already ended.
local function finish(stream, group, entry, id)
  local seen = key('seen', stream, id)
  local present = guard(seen)
  local removed = remove(stream, group, entry)
  if present and present ~= entry then removed = removed + remove(stream, group, present) end
  redis.call('SET', seen, present or entry, 'EX', ttl)
  return removed > 0 or not present  -- a Redis that lost its data knows of neither
end
local function bury(stream, id, body)
  local failures = key('failures', stream, id)
  redis.call('XADD', prefix .. 'dead', 'MAXLEN', 1000, '*', 'stream', stream, 'id', id,
             'body', body, 'failures', cjson.encode(texts(failures)))
  redis.call('DEL', failures)
  redis.call('SET', key('done', stream, id), 'dead', 'EX', ttl)
end
-- Whether the lease (entry, delivery) is the present one, and the consumer's if one is given.
local function holds(stream, group, entry, delivery, consumer)
  local row = redis.pcall('XPENDING', prefix .. stream, group, entry, entry, 1)[1]
  if type(row) ~= 'table' or row[4] ~= tonumber(delivery) then return false end
  return consumer == nil or row[2] == consumer
end
local function record(stream, id, text)
  local failures = key('failures', stream, id)
  if redis.call('TYPE', failures).ok ~= 'list' then redis.call('DEL', failures) end
  return redis.call('RPUSH', failures, text)
end
"""

# stream, id, body. 1 added, 0 seen before.
ENQUEUE = """
local stream, id, body = ARGV[3], ARGV[4], ARGV[5]
touch(stream)
local seen = key('seen', stream, id)
if redis.call('EXISTS', seen) == 1 then
  if redis.call('TTL', seen) >= 0 then redis.call('EXPIRE', seen, ttl) end
  return 0
end
add(stream, id, body)
return 1
"""

# group, consumer, lease in ms, max_expiries, stream…. {stream, entry, id, body, delivery, failures}
# or nil; {stream, entry} where the entry is not this queue's. XPENDING looks through all leases of
# a stream at once (XAUTOCLAIM through ten), for an expired one may stand behind many that are
# renewed. One is taken at a time: a poisoned item must not take others down with its worker. An
# entry that somebody deleted has no body any more.
CLAIM = """
local group, consumer, lease_ms, max_expiries = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local function lease(stream, entry, delivery)
  local id, body = field(entry, 'id'), field(entry, 'body')
  if not id or not body then return {stream, entry[1]} end
  return {stream, entry[1], id, body, delivery, texts(key('failures', stream, id))}
end
local function bury_expired(stream, entry, delivery)
  local id = field(entry, 'id')
  if finish(stream, group, entry[1], id) then
    record(stream, id, 'lease expired ' .. (delivery - 1) .. ' times: its workers died or hung')
    bury(stream, id, field(entry, 'body'))
  end
end
local function expired(stream)
  local stream_key = prefix .. stream
  while true do
    local row = redis.call('XPENDING', stream_key, group, 'IDLE', lease_ms, '-', '+', 1)[1]
    if not row then return nil end
    local entry = redis.call('XCLAIM', stream_key, group, consumer, lease_ms, row[1])[1]
    local delivery = row[4] + 1
    if not entry then redis.call('XACK', stream_key, group, row[1])
    elseif delivery <= max_expiries then return lease(stream, entry, delivery)
    elseif not field(entry, 'id') or not field(entry, 'body') then return {stream, entry[1]}
    else bury_expired(stream, entry, delivery) end
  end
end
touch('dead')
for i = 7, #ARGV do
  local found = expired(ARGV[i])
  if found then return found end
end
for i = 7, #ARGV do
  local reply = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', 1,
                           'STREAMS', prefix .. ARGV[i], '>')
  if reply then return lease(ARGV[i], reply[1][2][1], 1) end
end
return false
"""

# stream, group, entry, delivery, consumer. 1 renewed, 0 not the holder.
RENEW = """
local stream, group, entry, delivery, consumer = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
if not holds(stream, group, entry, delivery, consumer) then return 0 end
return #redis.call('XCLAIM', prefix .. stream, group, consumer, 0, entry, 'JUSTID')
"""

# stream, group, entry, id, result stream ("" for none), result. 1 this call ended it, 0 it had
# ended before.
COMPLETE = """
local stream, group, entry, id = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local result_stream, result = ARGV[7], ARGV[8]
touch(stream)
if result_stream ~= '' then touch(result_stream) end
if not finish(stream, group, entry, id) then return 0 end
redis.call('DEL', key('failures', stream, id))
if result_stream ~= '' and redis.call('EXISTS', key('seen', result_stream, id)) == 0 then
  add(result_stream, id, result)
end
return 1
"""

# stream, group, entry, delivery, id, body, error, max_deliveries. 1 dead now, 0 put back or not the
# holder any more. An item put back is a new entry at the end: a waiting reader wakes at once, and
# its count of expiries is new.
FAIL = """
local stream, group, entry, delivery = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local id, body, text, max_deliveries = ARGV[7], ARGV[8], ARGV[9], tonumber(ARGV[10])
touch(stream, 'dead')
if not holds(stream, group, entry, delivery) then return 0 end
if record(stream, id, text) < max_deliveries then
  remove(stream, group, entry)
  add(stream, id, body)
  return 0
end
if not finish(stream, group, entry, id) then return 0 end
bury(stream, id, body)
return 1
"""

# stream, id, body, error. 1 dead now, 0 dead before.
BURY = """
local stream, id, body, text = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
touch('dead')
if guard(key('done', stream, id)) == 'dead' then return 0 end
record(stream, id, text)
bury(stream, id, body)
return 1
"""

# stream, group, entry, delivery, id, body.
RELEASE = """
local stream, group, entry, delivery = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local id, body = ARGV[7], ARGV[8]
if not holds(stream, group, entry, delivery) then return 0 end
remove(stream, group, entry)
add(stream, id, body)
return 1
"""

# stream, group, incarnation. The ids of the items that this call ended: not those that this start
# or a later one has asked for (`…#incarnation.attempt`), for this one may have stood still.
PURGE = """
local stream, group, incarnation, ended = ARGV[3], ARGV[4], tonumber(ARGV[5]), {}
for _, entry in ipairs(redis.call('XRANGE', prefix .. stream, '-', '+')) do
  local id = field(entry, 'id')
  local of_start = id and tonumber(string.match(id, '#(%d+)%.%d+$') or '')
  if id and not (of_start and of_start >= incarnation) then
    if finish(stream, group, entry[1], id) then ended[#ended + 1] = id end
    redis.call('DEL', key('failures', stream, id))
  end
end
return ended
"""

# stream, group, entry, reason. Puts an entry that is not this queue's among the dead.
SET_ASIDE = """
local stream, group, entry, reason = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
touch(stream, 'dead')
local found = redis.call('XRANGE', prefix .. stream, entry, entry)[1]
remove(stream, group, entry)
if not found then return 0 end
redis.call('XADD', prefix .. 'dead', 'MAXLEN', 1000, '*', 'stream', stream,
           'id', field(found, 'id') or '', 'body', field(found, 'body') or '',
           'failures', cjson.encode({reason}))
return 1
"""

# stream, id. The errors of the item's attempts.
FAILURES = """
return texts(key('failures', ARGV[3], ARGV[4]))
"""

# entry of the dead stream that was the last one read ("-" for none), count. {entry, stream, id,
# failures} of those after it, oldest first: bodies, which are large, stay in Redis.
DEAD = """
local after, found = ARGV[3], {}
if after ~= '-' then after = '(' .. after end
for i, entry in ipairs(redis.call('XRANGE', prefix .. 'dead', after, '+', 'COUNT', ARGV[4])) do
  found[i] = {entry[1], field(entry, 'stream') or '', field(entry, 'id') or '',
              field(entry, 'failures') or ''}
end
return found
"""
