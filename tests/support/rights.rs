//! The rights that a limiter needs.

/// The commands of `acquire.lua`.
pub const DECIDES: &[&str] = &[
    "+evalsha", "+eval", "+time", "+hmget", "+hset", "+hdel", "+unlink", "+pttl", "+pexpire",
];

/// The further commands of `heartbeat.lua`.
pub const SENDS_HEARTBEATS: &[&str] = &[
    "+get",
    "+set",
    "+zadd",
    "+zrem",
    "+zcount",
    "+zremrangebyscore",
];
