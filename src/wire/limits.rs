//! Every bound of the server, named, with its unit. What happens when a bound is reached stands beside it.
//!
//! Owns no state. Promises: no queue or table of a running node has a bound that is not named here; what a tool reads is
//! bounded by the node that wrote it. A name after "counted" or "shown as" is one of `/status`.

/// Ticks a second of the world's clock.
pub const TICK_HZ: u64 = 60;
/// Nanoseconds between two tick edges, rounded down; edges are computed from the tick number, so nothing drifts.
pub const TICK_NS: u64 = 1_000_000_000 / TICK_HZ;

/// UDP sockets of a node, whatever the number of shards; a lane is served whole by one shard.
pub const LANES: usize = 32;
/// Shards of a node.
pub const SHARDS_MAX: usize = 32;
/// Tables of sessions of a node: the lanes, and behind them the TCP peers of each shard, which never move.
pub const LANE_TABLES: usize = LANES + SHARDS_MAX;
/// Sessions in one lane. A join beyond it is answered with a denial, counted `lane_full`.
pub const LANE_SESSIONS_MAX: usize = 1_024;
/// Half-open netcode handshakes in one lane. The oldest gives way, counted `pending_evicted`.
pub const LANE_PENDING_MAX: usize = 1_024;
/// Half-open handshakes of one source prefix (an IPv4 address, or 64 bits of an IPv6 one) in one lane. More: the oldest of
/// that prefix gives way, counted `pending_evicted`, and nobody else's.
pub const LANE_PENDING_PER_PREFIX_MAX: usize = 512;
/// Connect-token MACs that a lane remembers until they expire, to refuse most repeats before the keeper is asked. Full:
/// requests are ignored, counted `token_history_full`.
pub const LANE_TOKENS_MAX: usize = 16_384;

/// Bytes of one body (datagram payload, or TCP frame after the connect token). Longer is dropped, counted `body_malformed`;
/// in a TCP frame it ends the stream, counted `stream_malformed`.
pub const BODY_BYTES_MAX: usize = 1_200;
/// Bytes of a netcode connection request, the longest datagram that a server reads.
pub const DATAGRAM_BYTES_MAX: usize = 1_078;
/// Bytes of a connect token, also the first frame of a TCP connection.
pub const TOKEN_BYTES: usize = 2_048;
/// Commands in one input packet. More is a malformed body.
pub const COMMANDS_PER_BODY_MAX: usize = 32;
/// Commands that an entity holds until its time credit allows them. The oldest gives way, counted `commands_over`.
pub const COMMANDS_HELD_MAX: usize = 32;
/// Ticks of time credit of a character that joins: what its packets may be early by without waiting for a tick.
pub const CREDIT_TICKS_START: u8 = 6;
/// Ticks of time credit that late commands leave over, so that the next packet need not wait for a tick.
pub const CREDIT_TICKS_SPARE: u8 = 3;
/// Ticks of time credit that an entity can save.
pub const CREDIT_TICKS_MAX: u8 = 15;
/// Ticks that commands may wait without a pause. Then what never ran meanwhile is discarded, told by own state's `discarded`.
pub const LAG_TICKS_MAX: u8 = 15;
/// Bodies of a session taken in one tick, for each tick that passed since the last one. More: of a datagram only its commands
/// are taken, counted `bodies_over`; a stream is not read until the next tick.
pub const BODIES_PER_TICK_MAX: u32 = 4;
/// Datagrams of a session opened in one tick. More are dropped unopened, counted `flood`.
pub const DATAGRAMS_PER_TICK_MAX: u16 = 64;
/// Ticks that count when several passed at once, for [`BODIES_PER_TICK_MAX`].
pub const TICKS_AT_ONCE_MAX: u64 = 16;
/// Commands of a session that constant frames (client tick 0) bring in one tick. More are dropped, counted `commands_refused`.
pub const COMMANDS_PER_TICK_MAX: u8 = 32;
/// Requests that a session takes from its channel in one tick. More wait there.
pub const REQUESTS_PER_TICK_MAX: usize = 8;
/// Requests of one stream that a session holds until its entity took them. More are refused, `Full`.
pub const REQUESTS_HELD_MAX: usize = 64;
/// Most by which the number of a request may be ahead of the newest one of its stream. More is refused, `OutOfOrder`.
pub const REQUESTS_AHEAD_MAX: u64 = 64;
/// Bytes of a stream that wait for the next tick because its session had its share. Nothing more is read from its socket
/// then; what the kernel held until it heard of that is several times [`TCP_RECEIVE_BUFFER_BYTES`] at the most. Who sent
/// more is closed, counted `unread_over`.
pub const STREAM_UNREAD_BYTES_MAX: usize = 8 * TCP_RECEIVE_BUFFER_BYTES;
/// Likewise of all streams of a shard. Beyond it a stream that has more than [`TCP_RECEIVE_BUFFER_BYTES`] is closed.
pub const STREAMS_UNREAD_BYTES_MAX: usize = 64 << 20;
/// Receive buffer of a TCP connection, bytes as they are asked for; the kernel takes twice as many. What a client sends
/// while its shard stands still waits there and then at the client.
pub const TCP_RECEIVE_BUFFER_BYTES: usize = 64 * 1_024;
/// Answers to requests that may wait for a client's acknowledgement before its entity is given more of its requests: with
/// those of the requests under way they fit a channel of [`CHANNEL_MESSAGES_MAX`].
pub const RESPONSES_WAITING_MAX: usize = 24;
/// Ticks after which what a shard said of its costs moves nothing any more: it may stand still.
pub const COSTS_OLD_TICKS: u64 = 3 * COST_TICKS;
/// Pings answered in one drain for one session. More are dropped, counted `pings_over`.
pub const PINGS_PER_DRAIN_MAX: u32 = 64;

/// Bytes of one reliable message, all fragments together.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1_024;
/// Bytes of one fragment of a reliable message.
pub const FRAGMENT_BYTES_MAX: usize = 1_000;
/// Bytes that a reliable channel holds for one peer, each direction. Full towards the peer: the session is cut, reason
/// `Slow`; full from the peer: the fragment is not acknowledged, counted `channel_full`.
pub const CHANNEL_BYTES_MAX: usize = 64 * 1_024;
/// Messages in flight on one reliable channel, each direction. Full: as for [`CHANNEL_BYTES_MAX`].
pub const CHANNEL_MESSAGES_MAX: usize = 64;
/// Bytes that a fragment costs beside its own while its message is not whole, and a message until it was taken.
pub const FRAGMENT_OVERHEAD_BYTES: usize = 64;
/// Bytes of memory that a reliable channel takes from one peer: [`CHANNEL_BYTES_MAX`], and the overhead of as many fragments
/// as a sender makes of that which cuts its messages into the longest ones. Full: as for [`CHANNEL_BYTES_MAX`].
pub const CHANNEL_COST_BYTES_MAX: usize = CHANNEL_BYTES_MAX
    + (CHANNEL_BYTES_MAX.div_ceil(FRAGMENT_BYTES_MAX) + CHANNEL_MESSAGES_MAX) * FRAGMENT_OVERHEAD_BYTES;
/// Fragments of one reliable message. More is malformed.
pub const FRAGMENTS_MAX: usize = 64;
/// Ticks between two sends of an unacknowledged fragment, where the transport may lose it.
pub const RESEND_TICKS: u32 = 6;

/// Bytes a second that a session may send at the least, whatever its packets come to: the own state at every send, and
/// some slices.
pub const SESSION_BYTES_PER_S_MIN: u32 = 12_000;
/// Bytes a second that a session may send at the most: 60 whole bodies.
pub const SESSION_BYTES_PER_S_MAX: u32 = 60 * BODY_BYTES_MAX as u32;

/// Sent packets whose fate a peer remembers. The oldest gives way and counts as lost.
pub const SENT_PACKETS_KEPT: usize = 256;
/// Fragments in one packet over a transport that may lose it. Full: the rest goes with the next packet.
pub const FRAGMENTS_PER_PACKET_MAX: usize = 4;
/// Notes (what else a packet carried that its sender wants to hear of) in one packet. Full: the note is refused, and
/// what it stands for goes with the next packet.
pub const NOTES_PER_PACKET_MAX: usize = 8;
/// Bytes of a client's body over UDP: the longest datagram that a server reads, less netcode's prefix, sequence and tag.
pub const CLIENT_BODY_BYTES_MAX: usize = DATAGRAM_BYTES_MAX - 26;

/// Commands that a client remembers. The oldest is forgotten, which shows as a gap in its ticks.
pub const COMMANDS_REMEMBERED_MAX: usize = COMMANDS_PER_BODY_MAX;
/// Events that a client remembers to know them again. The oldest is forgotten, and would be reported a second time.
pub const EVENTS_REMEMBERED_MAX: usize = 128;
/// Events and messages that wait for a client to poll them, each. The oldest gives way.
pub const CLIENT_INBOX_MAX: usize = 256;
/// Slices in a client's view. More are ignored, counted as errors `other`.
pub const VIEW_SLICES_MAX: usize = 4_096;
/// Entities in a client's view. More are ignored, counted as errors `other`.
pub const VIEW_ENTITIES_MAX: usize = 65_536;
/// Ticks without an update after which a client forgets an entity whose slice no longer shows it.
pub const ORPHAN_TICKS_MAX: u32 = 60;

/// Entities in one slice: as many as fit one body in plain form beside the own state and all events.
pub const SLICE_SLOTS_MAX: usize = 60;
/// Public events in one body. More are not shown to that client: first those of a lesser kind, then the farther, then the
/// older ones, counted `events_unsent`.
pub const EVENTS_PER_BODY_MAX: usize = 6;
/// Of these, events of one source. More give way to those of others, counted `events_unsent`.
pub const EVENTS_PER_SOURCE_MAX: usize = 2;
/// Public events of one spot (a 16 m square) in one tick and frame: as many as a body may take, so that nobody misses the
/// others. More are not shown, counted `events_over`.
pub const EVENTS_PER_SPOT_MAX: usize = EVENTS_PER_BODY_MAX;
/// Ticks between two emotes of one player. Sooner: refused, `TooSoon`.
pub const EMOTE_TICKS: u64 = TICK_HZ / 2;
/// Slices that a plot can have. Full: who comes is not shown until somebody leaves, counted `entities_hidden`.
pub const PLOT_SLICES_MAX: usize = 256;
/// Slices that a client follows. More are not shown to it until it leaves some.
pub const SLICES_FOLLOWED_MAX: usize = 2_048;
/// Slices that a client was not seen to forget. More: the oldest is not told again; who acknowledges nothing sees it.
pub const LEAVES_HELD_MAX: usize = 512;
/// Slices that one body tells its client to forget. More wait for the next body.
pub const LEAVES_PER_BODY_MAX: usize = 32;
/// Ticks between two keyframes of a cell's slices.
pub const KEYFRAME_TICKS: u64 = 64;
/// Ticks that a decree is sent ahead at the least, so that every shard hears it before it is in force.
pub const DECREE_TICKS_MIN: u64 = 12;
/// Ticks over which a shard measures what its cells and lanes cost, and between two looks at the balance: so there are at
/// most two decrees about cuts a second.
pub const COST_TICKS: u64 = 30;
/// Cells that one decree moves for the balance. More wait for the next one.
pub const CUT_CELLS_MAX: usize = 32;
/// Entities in the cells after the first that one decree moves: all are handed over in one tick, at about 5 us each.
/// More wait for the next one.
pub const CUT_ENTITIES_MAX: u32 = 1_000;
/// Moves of cells by hand that wait for a decree. More are not heard: `tune cuts` says that its cells did not move.
pub const CUT_WISHES_MAX: usize = 64;
/// Lanes that one decree moves for the balance. More wait for the next one.
pub const LANES_MOVED_MAX: usize = 8;
/// Least ticks that a piece of wildlife lives; it lives at most twice as long.
pub const NPC_LIFE_TICKS: u32 = 10 * 60 * TICK_HZ as u32;

/// Ticks that an answer of the ledger looks for its entity: on its way to a shard that stands still it is in no frame.
pub const UNHEARD_TICKS: u64 = SILENT_S_MAX * TICK_HZ + 120;
/// Ticks in which it is looked for in each; afterwards now and then, so that those who left cost little.
pub const UNHEARD_OFTEN_TICKS: u64 = 120;
/// Ticks between two looks then.
pub const UNHEARD_EVERY_TICKS: u64 = 12;
/// Parcels under way from one shard to another. Full: what comes is merged into one that its writer keeps back.
pub const PARCELS_MAX: usize = 60;
/// Effects in one merged parcel from which on those that may be refused are, by name, counted `effects_refused`. The
/// others are bounded by the entities and orders that they are about, and handoffs by the population.
pub const MERGED_EFFECTS_MAX: usize = 65_536;
/// Private events in one merged parcel. Full: the sessions concerned end as slow, counted `sessions_behind`.
pub const MERGED_EVENTS_MAX: usize = 65_536;
/// Ticks without a frame from a shard after which the others go on without it: snapshots show its newest frame as it is,
/// and meetings do not wait for it.
pub const SILENT_TICKS: usize = 12;
/// Seconds that a shard may stand still. Then the node ends, with its flight record.
pub const SILENT_S_MAX: u64 = 30;
/// Ticks after a shard stood still in which it ends no peer for its silence: what they sent meanwhile is being read.
pub const SILENT_GRACE_TICKS: u64 = 2 * TICK_HZ;
/// Lanes and answers of the keeper under way from one shard to another. Full: they stay where they are and go later.
pub const POSTS_MAX: usize = 256;
/// What waits in one shard for lanes that are on their way to it. Full: the sessions concerned end as slow, counted
/// `sessions_behind`, when their lane is there.
pub const LANE_WAITING_MAX: usize = 65_536;
/// Microseconds that a shard waits at each of its two meetings in a tick.
pub const MEETING_WAIT_US: u64 = 4_000;
/// Ticks of frames that stay readable (lag compensation, events, meetings that came late).
pub const FRAMES_KEPT: usize = 16;

/// Ticks that a session has to hear why it must go.
pub const FAREWELL_TICKS: u64 = 12;
/// Commands that wait in one shard because the keeper's queue is full, shown as `keeper_waiting`. More: no row is written
/// but those of characters that go, and nobody is admitted, counted `lane_full`.
pub const KEEPER_WAITING_MAX: usize = 1_024;
/// Commands under way from the shards to the keeper. Full: they wait in their shard, each tick of it counted `keeper_full`.
pub const KEEPER_COMMANDS_MAX: usize = 16_384;
/// Answers under way from the keeper to one shard. Full: the keeper holds what comes, counted `answers_waited`.
pub const KEEPER_ANSWERS_MAX: usize = 65_536;
/// Answers that the keeper holds for one shard that does not read: with those under way 30 s of 10,000 a second. Full: the
/// keeper takes no further command, which fills its own queue.
pub const KEEPER_HELD_MAX: usize = 262_144;
/// Microseconds between two looks of the keeper at its commands.
pub const KEEPER_POLL_US: u64 = 1_000;
/// Bytes of changes that the keeper's database holds in memory until they are in tables, of all column families together.
/// Full: the largest are written out.
pub const STORE_MEMTABLES_BYTES_MAX: usize = 32 * 1_024 * 1_024;
/// Bytes of such changes of one column family. Full: they are written out.
pub const STORE_MEMTABLE_BYTES_MAX: usize = 8 * 1_024 * 1_024;
/// Bytes of tables that the keeper's database holds in memory, with their indexes and filters. Full: the least
/// recently used are evicted and read again when needed.
pub const STORE_CACHE_BYTES_MAX: usize = 32 * 1_024 * 1_024;
/// Bytes of the database's log. Full: what only it holds is written out.
pub const STORE_LOG_BYTES_MAX: u64 = 64 * 1_024 * 1_024;
/// Files that the database has open. More: those longest unused are closed.
pub const STORE_FILES_MAX: i32 = 256;
/// Bytes that must be free on the keeper's disk. Less: nobody is admitted, shown as `keeper.disk_full`, until half as
/// much again is free.
pub const KEEPER_FREE_BYTES_MIN: u64 = 64 * 1_024 * 1_024;
/// Checkpoints asked for at a time. More: the admin is told to ask again.
pub const KEEPER_CHECKPOINTS_MAX: usize = 1;
/// Ticks by which the durable realm tick may lag behind when no row is written. Reached: it is committed alone.
pub const KEEPER_CLOCK_TICKS_MAX: u64 = TICK_HZ;
/// Clients with a live session. A claim beyond it is refused, `TooMany`.
pub const KEEPER_LIVE_MAX: usize = LANES * LANE_SESSIONS_MAX;
/// Used tokens that the keeper remembers, on disk, until they expire. Full: claims are refused, `TooMany`.
pub const KEEPER_TOKENS_MAX: usize = 262_144;
/// Seconds that the keeper remembers a token beyond its expiry: a handshake begun in time may end later. A claim that comes
/// after that is refused, `TokenUsed`.
pub const KEEPER_TOKEN_GRACE_S: u64 = 30;
/// Batches under way to the thread that writes them, and answers of it. Full: the keeper waits for the disk, and its own
/// queue fills.
pub const KEEPER_BATCHES_MAX: usize = 1;
/// Used tokens that the keeper forgets at one word about the time. More wait for the next one, half a second later.
pub const KEEPER_TOKENS_FORGOTTEN_MAX: usize = 8_192;
/// Rows moved between column families in one batch at start; more take further batches.
pub const KEEPER_MOVE_ROWS_MAX: usize = 4_096;
/// Rows of an older program that are removed in one batch at start; more take further batches.
pub const KEEPER_FORGET_ROWS_MAX: usize = 4_096;
/// Ticks after which a changed character is written at the latest.
pub const ROW_TICKS_MAX: u64 = 3 * TICK_HZ;

/// Items in one offer, mail or trade. More is malformed.
pub const OFFER_ITEMS_MAX: usize = 6;
/// Items in one account, by the number of its kind: none, bag, equipment, bank, mailbox, escrow, ground; the others are
/// the house's and hold any number. Full: the order is refused, `Full`.
pub const ACCOUNT_ITEMS_MAX: [usize; 7] = [0, 40, 12, 120, 60, OFFER_ITEMS_MAX, 1];
/// Coins of one currency that the mint makes in a realm's life. More: the order is refused, `BadAmount`; so no sum of
/// balances overflows.
pub const COINS_MAX: u64 = 1 << 62;
/// Mails that wait for one character. More are refused, `Full`.
pub const MAILS_MAX: usize = 50;
/// Mails of one sender that wait for one character, so that nobody fills another's mailbox alone. More are refused,
/// `Full`.
pub const MAILS_PER_SENDER_MAX: usize = 10;
/// Ticks that a mail waits before it goes back: 30 days.
pub const MAIL_TICKS: u64 = 30 * 86_400 * TICK_HZ;
/// Mails that go back in one tick of the keeper's clock. More wait for the next one.
pub const EXPIRED_PER_CLOCK_MAX: usize = 256;
/// Mails that are looked at for that: those of a frozen flow stay among them.
pub const EXPIRED_LOOKED_AT_MAX: usize = 4_096;
/// Coins that a mail costs; they are burnt.
pub const POSTAGE_COINS: u64 = 1;
/// Things on the ground of a realm. More are refused, `Full`.
pub const THINGS_MAX: usize = 20_000;
/// Things on the ground of one cell. More are refused, `Full`.
pub const CELL_THINGS_MAX: u32 = 512;
/// Entities in a plot from which on nothing is dropped there: `Full`. A plot has room for 256 slices.
pub const PLOT_DROP_ENTITIES_MAX: usize = 6_000;
/// Ticks that a thing lies on the ground before it is swept: 10 minutes.
pub const THING_TICKS: u64 = 600 * TICK_HZ;
/// Answers that the ledger remembers of each source that lasts, 32 bytes each; of a thing none. An older order gets
/// `TooOld`.
pub const ANSWERS_KEPT: usize = 64;
/// Orders that are remembered to be named when a sum breaks. The oldest is forgotten.
pub const RECENT_ORDERS_MAX: usize = 32;
/// Sources whose answers the keeper holds in memory, at most 64 MiB of answers. More: those longest unused are read again
/// when needed.
pub const SOURCES_HELD_MAX: usize = 32_768;
/// Items and mails in one message about goods; the rest follows in further ones.
pub const GOODS_PART_ENTRIES: usize = 256;
/// Messages that may wait for a client's acknowledgement before news of its goods is added up instead of sent.
pub const GOODS_MESSAGES_MAX: usize = 4;
/// Answers to an earlier session that a client hears after its Welcome. More are dropped: the client asks again.
pub const EARLY_MESSAGES_MAX: usize = 8;
/// Words of an entity that a session holds until those before them came: two shards tell it what one would have told in order,
/// and the first of them stands still. More than these end the session.
pub const EARLY_WORDS_MAX: usize = 64;
/// Coins that a development character begins with.
pub const START_COINS: u32 = 1_000;
/// Items that a development character begins with.
pub const START_ITEMS: u8 = 8;
/// Coins and renown that a deed earns.
pub const DEED_COINS: u64 = 10;

/// Handshake answers and control packets that one drain makes. More are not sent, counted `replies_over`.
pub const REPLIES_PER_DRAIN_MAX: usize = 4_096;
/// TCP connections of one shard. More are closed at once, counted `tcp_full`.
pub const TCP_CONNECTIONS_MAX: usize = 8_192;
/// TCP connections of one source prefix to one shard that showed no token yet. More are closed at once, counted
/// `prefix_full`.
pub const TCP_TOKENLESS_PER_PREFIX_MAX: u32 = 256;
/// TCP connections of one source prefix to one shard, except in development mode, where all come from one machine. More are
/// closed at once, counted `prefix_full`.
pub const TCP_PER_PREFIX_MAX: u32 = 4_096;
/// TCP peers that one drain without a ring takes in. More wait for the next, in the kernel's queue.
pub const TCP_ACCEPTS_PER_DRAIN_MAX: usize = 1_024;
/// Bytes that one drain without a ring reads from a TCP peer. More wait for the next, in its socket.
pub const TCP_BYTES_PER_DRAIN_MAX: usize = 64 * 1_024;
/// Bytes that wait for one TCP peer. Full: its snapshots are skipped, counted `tcp_backlog`; see [`TCP_STALL_TICKS_MAX`].
pub const TCP_BACKLOG_BYTES_MAX: usize = 64 * 1_024;
/// Ticks that a TCP peer may leave a send unfinished before it is cut as slow.
pub const TCP_STALL_TICKS_MAX: u64 = 5 * TICK_HZ;
/// Silent or slow peers that one sweep ends, at about 2 us each: thousands may fall silent together. More wait for the next
/// sweep, a tenth of a second later.
pub const ENDS_PER_SWEEP_MAX: usize = 512;
/// Ticks that a TCP peer has, from its connection on, to show its whole connect token.
pub const TCP_TOKEN_TICKS_MAX: u64 = 5 * TICK_HZ;

/// Connections that the kernel finishes before a shard accepted them; more wait for their peer's next try. The kernel
/// takes the smaller of this and `net.core.somaxconn`.
pub const TCP_ACCEPT_QUEUE_MAX: i32 = 4_096;

/// Bytes asked of the kernel for what waits to be read from one lane (it books about 2.3 KB for a full datagram, and
/// doubles the number itself). Full: the kernel drops datagrams, which `/proc/net/udp` counts.
pub const LANE_RECEIVE_BUFFER_BYTES: usize = 8 * 1_024 * 1_024;
/// Bytes asked of the kernel for what a lane has sent and the device has not. Full: datagrams are dropped, counted
/// `send_would_block`.
pub const LANE_SEND_BUFFER_BYTES: usize = 8 * 1_024 * 1_024;
/// Bytes of the longest datagram that a server sends: an IPv6 packet of 1,280 bytes without its headers.
pub const DATAGRAM_SEND_BYTES_MAX: usize = 1_232;
/// Operations that a shard hands the kernel in one call, a power of two, and datagrams that wait for a submit without a
/// ring. Full: what is there is submitted at once.
pub const RING_SUBMISSIONS_MAX: u32 = 512;
/// Completions that the kernel keeps for a shard, a power of two. Full: receives end and are armed again, counted
/// `completions_overflowed`.
pub const RING_COMPLETIONS_MAX: u32 = 32_768;
/// Buffers that the kernel fills with a shard's datagrams and TCP bytes, a power of two. Empty: receives end, the rest
/// waits in the sockets, counted `buffers_empty`.
pub const RING_BUFFERS_MAX: u16 = 8_192;
/// Times that one drain asks the kernel. What is left then waits for the next drain. Without a ring all lanes together
/// get so many times [`RING_BUFFERS_MAX`] datagrams, each its share.
pub const DRAIN_PASSES_MAX: usize = 4;

/// Ticks between two snapshots in the flight record, 30 s: the same ticks for all shards, the multiples of this.
pub const RECORD_SNAPSHOT_TICKS: u64 = 30 * TICK_HZ;
/// Bytes of one shard's flight record that wait to be written. Full: recording stops until the next snapshot, the ticks
/// until then are counted `record.dropped`.
pub const RECORD_WAITING_BYTES_MAX: usize = 32 * 1_024 * 1_024;
/// Bytes of one write of the flight record, whole blocks.
pub const RECORD_WRITE_BYTES: usize = 64 * 1_024;
/// Bytes of one write of the flight record through the page cache, where direct ones are denied.
pub const RECORD_CACHED_WRITE_BYTES: usize = 1_024 * 1_024;
/// Works of one shard that wait for its helper thread, where files are not written by io_uring. Full: they wait in their
/// tasks for the next pass.
pub const HELPER_WORKS_MAX: usize = 4;
/// Milliseconds between two looks of a shard's helper thread at what waits.
pub const HELPER_POLL_MS: u64 = 5;
/// Bytes of a block of the disk: direct writes begin and end at its multiples.
pub const RECORD_BLOCK_BYTES: usize = 4_096;
/// Milliseconds between two looks of a shard's writer at what waits: what a crash loses of the flight record.
pub const RECORD_WRITE_MS: u64 = 250;
/// Megabytes of flight record that a configuration may ask for. More is refused at start.
pub const RECORD_MEGABYTES_MAX: u32 = 65_536;
/// Flight records set aside. One more: the oldest of them is removed.
pub const RECORDS_KEPT_MAX: usize = 8;
/// Seconds between two records set aside because a shard was too late. Within them: not set aside.
pub const RECORD_OVERRUN_S_MIN: u64 = 60;
/// Ticks that an edge is late by when the flight record is set aside for it: half a second.
pub const RECORD_OVERRUN_TICKS: u64 = 30;
/// Seconds between two looks of the host for segments that are too old.
pub const RECORD_PRUNE_S: u64 = 1;

/// NPCs of the whole land that a configuration may ask for. More is refused at start.
pub const NPCS_MAX: u32 = 100_000;
/// Public addresses in one connect token. More is refused at start.
pub const SERVER_ADDRESSES_MAX: usize = 32;

/// Reports under way from all shards to control. Full: the report is dropped, the next one carries newer totals.
pub const CONTROL_REPORTS_MAX: usize = 256;
/// Commands under way from control to one shard. Full: the admin is told to ask again.
pub const CONTROL_COMMANDS_MAX: usize = 64;
/// Changes of live keys that a node remembers, who made them and when. More: the oldest is in the log alone.
pub const TUNED_KEPT_MAX: usize = 64;
/// Milliseconds between two looks of control at the shards' reports.
pub const CONTROL_POLL_MS: u64 = 10;
/// HTTP connections of control at a time. More wait in the kernel's queue.
pub const CONTROL_HTTP_CONNECTIONS_MAX: usize = 64;
/// Milliseconds that one HTTP connection may last. Then it is closed.
pub const CONTROL_HTTP_MS_MAX: u64 = 30_000;
/// Bytes of one admin request line. Longer is answered in words and the connection closed.
pub const ADMIN_LINE_BYTES_MAX: usize = 4_096;
/// Admin connections at a time. More are answered in words and closed.
pub const ADMIN_CLIENTS_MAX: usize = 64;
/// Milliseconds that an admin connection may stay silent before it is closed.
pub const ADMIN_SILENT_MS_MAX: u64 = 60_000;
/// Milliseconds that an admin's question waits for the shards. Then the answer names the silent ones.
pub const ADMIN_ANSWER_MS_MAX: u64 = 2_000;
/// Bytes of an answer that the command line tools read from a node. Longer is an error.
pub const CONTROL_ANSWER_BYTES_MAX: usize = 64 * 1_024 * 1_024;

const _: () = assert!(MESSAGE_BYTES_MAX <= FRAGMENT_BYTES_MAX * FRAGMENTS_MAX, "a message fits its fragments");
const _: () = assert!(FRAGMENTS_MAX <= 64, "the fragments that arrived are one u64");
const _: () = assert!(SENT_PACKETS_KEPT.is_power_of_two(), "a u16 sequence wraps to the same place");
const _: () = assert!(CLIENT_BODY_BYTES_MAX.is_multiple_of(4), "a body is whole words");
const _: () = assert!(
    16 + 52 + (4 + EVENTS_PER_BODY_MAX * 24) + (4 + 16 + SLICE_SLOTS_MAX * 16) <= BODY_BYTES_MAX,
    "header, own state, events and a plain slice fit one body"
);
const _: () = assert!(SILENT_TICKS < FRAMES_KEPT, "until a shard is silent its newest frame has others of its tick");
const _: () = assert!(RECORD_WRITE_BYTES.is_multiple_of(RECORD_BLOCK_BYTES), "direct writes are whole blocks");
const _: () = assert!(LANES == 32, "the lanes of a shard are the bits of a u32");
const _: () = assert!(LANE_TABLES <= 256, "a lane is a u8");
const _: () = assert!(LANE_SESSIONS_MAX <= TCP_CONNECTIONS_MAX, "each TCP connection may have a session");
const _: () = assert!(SLICE_SLOTS_MAX <= 255, "a slot is a u8 on the wire");
const _: () = assert!(TCP_CONNECTIONS_MAX <= 1 << 16, "a connection's slot is a u16");
const _: () =
    assert!(RING_BUFFERS_MAX as u32 * 2 <= RING_COMPLETIONS_MAX, "full buffers cannot overflow the completions");
const _: () =
    assert!(BODY_BYTES_MAX + 25 <= DATAGRAM_SEND_BYTES_MAX, "a sealed body (prefix, sequence, tag) fits a datagram");
