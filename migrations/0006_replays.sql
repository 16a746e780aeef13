-- Replays: where a walk stands, when it goes on, which of its deliveries wait.

-- walked: all was made; it is completed when each was sent once. ending: it was cancelled, and what waits of it is being
-- ended. next_at: not before; it keeps the pace, whoever feeds.
-- cursor_endpoint: with 'missing', the last endpoint of the event at the cursor that is done; NULL: all are.
ALTER TABLE ringback.replays
  ADD COLUMN cursor_endpoint uuid,
  ADD COLUMN matched_exact boolean NOT NULL DEFAULT true,
  ADD COLUMN next_at timestamptz NOT NULL DEFAULT now(),
  ADD COLUMN walked boolean NOT NULL DEFAULT false,
  ADD COLUMN ending boolean NOT NULL DEFAULT false;
ALTER TABLE ringback.replays SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
CREATE INDEX replays_ending ON ringback.replays (id) WHERE ending;

-- What is replayed goes in an order of its own, in which it was queued: places are taken from here, a page's at once.
CREATE SEQUENCE ringback.replay_positions INCREMENT 1000;
DROP INDEX ringback.delivery_queue_ordered;
CREATE INDEX delivery_queue_ordered ON ringback.delivery_queue (target_id, order_key, is_replay, position) WHERE order_key IS NOT NULL;

-- Live deliveries have no replay_id, and so no place in these.
ALTER TABLE ringback.delivery_queue ADD COLUMN replay_id uuid;
CREATE INDEX delivery_queue_replay ON ringback.delivery_queue (replay_id, delivery_id) WHERE replay_id IS NOT NULL;
CREATE INDEX delivery_queue_replay_untried ON ringback.delivery_queue (replay_id) WHERE replay_id IS NOT NULL AND attempt = 0;
CREATE INDEX delivery_queue_target_replays ON ringback.delivery_queue (target_id, due_at, delivery_id) WHERE is_replay;

-- The deliveries of an event to one endpoint, also where it went to thousands of others.
CREATE INDEX deliveries_event_endpoint ON ringback.deliveries (tenant_id, event_id, endpoint_id);
DROP INDEX ringback.deliveries_event;
