-- Publish-subscribe: endpoints, events from outside, fan-out, order per key, replay.

-- ---------------------------------------------------------------- endpoints

-- Every change of an endpoint takes the next number under one lock, so that a reader who remembers the last number
-- it saw misses none (ringback.next_endpoint_change).
CREATE SEQUENCE ringback.endpoint_change;

CREATE FUNCTION ringback.next_endpoint_change() RETURNS bigint
LANGUAGE plpgsql
AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(hashtext('ringback.endpoint_change'));
  RETURN nextval('ringback.endpoint_change');
END
$$;

-- status: 1 enabled, 2 disabled, 3 paused. ordering: 0 none, 1 by key, 2 strict. signature: 1 hmac-sha256, 2 ed25519.
CREATE TABLE ringback.endpoints (
  tenant_id      uuid NOT NULL,
  id             uuid NOT NULL,
  change         bigint NOT NULL,
  url            text NOT NULL,
  description    text NOT NULL DEFAULT '',
  event_types    text[],               -- NULL: all
  filter         text,                 -- CEL
  transform      text,                 -- CEL
  headers        bytea,                -- sealed JSON
  metadata       jsonb,
  status         smallint NOT NULL CHECK (status IN (1, 2, 3)),
  status_reason  text,                 -- why it is disabled, if Ringback did it
  ordering       smallint NOT NULL DEFAULT 0 CHECK (ordering IN (0, 1, 2)),
  max_in_flight  integer NOT NULL DEFAULT 32 CHECK (max_in_flight > 0),
  rate_per_s     float8 CHECK (rate_per_s > 0),
  rate_burst     integer CHECK (rate_burst > 0),
  timeout_ms     integer NOT NULL DEFAULT 15000 CHECK (timeout_ms > 0),
  retry          text,                 -- JSON; NULL: the defaults
  signature      smallint NOT NULL DEFAULT 1 CHECK (signature IN (1, 2)),
  version        bigint NOT NULL DEFAULT 1,
  created_at     timestamptz NOT NULL DEFAULT now(),
  updated_at     timestamptz NOT NULL DEFAULT now(),
  deleted_at     timestamptz,          -- a tombstone is kept for those who remember the endpoint
  PRIMARY KEY (tenant_id, id)
);
CREATE INDEX endpoints_change ON ringback.endpoints (change);

-- What the sender knows of a receiver's health; written by the owner of its lane, and rarely.
CREATE TABLE ringback.endpoint_health (
  tenant_id      uuid NOT NULL,
  endpoint_id    uuid NOT NULL,
  failing_since  timestamptz,          -- since then every attempt failed
  open_until     timestamptz,          -- the breaker is open until then
  failures       integer NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant_id, endpoint_id)
) WITH (fillfactor = 70);

-- Counters by the minute, so that nobody counts rows. latency: attempts by powers of two of milliseconds (≤ 1, 2, 4, …).
CREATE TABLE ringback.endpoint_minutes (
  tenant_id    uuid NOT NULL,
  endpoint_id  uuid NOT NULL,
  minute       timestamptz NOT NULL,
  succeeded    integer NOT NULL,
  failed       integer NOT NULL,
  latency      integer[] NOT NULL,
  PRIMARY KEY (tenant_id, endpoint_id, minute)
) WITH (fillfactor = 70);

-- ---------------------------------------------------------------- events

CREATE TABLE ringback.event_dedup (
  tenant_id   uuid NOT NULL,
  key         text NOT NULL,
  event_id    uuid NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, key)
);
CREATE INDEX event_dedup_age ON ringback.event_dedup (created_at);

-- Events with more receivers than one transaction should make deliveries for: the rest is made in pieces.
CREATE TABLE ringback.fan_out_rest (
  tenant_id       uuid NOT NULL,
  event_id        uuid NOT NULL,
  position        bigint NOT NULL,
  after_endpoint  uuid NOT NULL,
  PRIMARY KEY (tenant_id, event_id)
);

-- ---------------------------------------------------------------- deliveries

ALTER TABLE ringback.deliveries ADD COLUMN replay_id uuid;
CREATE INDEX deliveries_endpoint ON ringback.deliveries (tenant_id, endpoint_id, id) WHERE endpoint_id IS NOT NULL;

-- order_key: deliveries of one target that share it go one after another, by position. strict: one key for all.
ALTER TABLE ringback.delivery_queue
  ADD COLUMN position bigint NOT NULL DEFAULT 0,
  ADD COLUMN order_key bigint,
  ADD COLUMN is_replay boolean NOT NULL DEFAULT false;
CREATE INDEX delivery_queue_target ON ringback.delivery_queue (target_id, due_at, delivery_id);
CREATE INDEX delivery_queue_ordered ON ringback.delivery_queue (target_id, order_key, position) WHERE order_key IS NOT NULL;

-- ---------------------------------------------------------------- replays

-- what: 'failed', 'all', 'missing'. status: 1 running, 2 completed, 3 cancelled, 4 failed. cursor: where the walk stands.
CREATE TABLE ringback.replays (
  tenant_id    uuid NOT NULL,
  id           uuid NOT NULL,
  endpoint_id  uuid,
  event_types  text[],
  what         text NOT NULL CHECK (what IN ('failed', 'all', 'missing')),
  since        timestamptz NOT NULL,
  until        timestamptz NOT NULL,
  per_s        float8 CHECK (per_s > 0),
  status       smallint NOT NULL DEFAULT 1 CHECK (status BETWEEN 1 AND 4),
  matched      bigint NOT NULL,
  replayed     bigint NOT NULL DEFAULT 0,
  cursor       uuid,
  error        text,
  created_at   timestamptz NOT NULL DEFAULT now(),
  updated_at   timestamptz NOT NULL DEFAULT now(),
  finished_at  timestamptz,
  PRIMARY KEY (tenant_id, id)
);
CREATE INDEX replays_running ON ringback.replays (id) WHERE status = 1;
