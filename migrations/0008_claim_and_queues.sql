-- Whose turn it is among waiting jobs: paused queues, queues with a limit, leases of workers outside.

ALTER TABLE ringback.job_leases ADD COLUMN IF NOT EXISTS worker text NOT NULL DEFAULT '';
-- NULL: a worker outside holds the lease; no node's death frees it, only its expiry does.
ALTER TABLE ringback.job_leases ALTER COLUMN holder DROP NOT NULL;
-- When timeout_s is over for a worker outside; no extension goes beyond. NULL: the node that runs it keeps the time.
ALTER TABLE ringback.job_leases ADD COLUMN deadline timestamptz;

-- Queues of a tenant from which nothing is handed out.
CREATE TABLE ringback.paused_queues (
  tenant_id  uuid NOT NULL,
  queue      text NOT NULL,
  paused_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, queue)
);

-- Queues that the operator's file limits, over all tenants and processes. The row's lock makes claims from the queue go one
-- after another. next_at: the theoretical arrival time of the generic cell rate algorithm.
CREATE TABLE ringback.limited_queues (
  queue    text PRIMARY KEY,
  next_at  timestamptz
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
