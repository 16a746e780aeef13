-- Jobs that come again and again. The job's text is sealed whole, for it may hold a callback's secret and headers.
-- overlap: 0 skip, 1 allow. catch_up: 0 none, 1 last, 2 all. status: 1 active, 2 paused.
CREATE TABLE ringback.schedules (
  tenant_id        uuid NOT NULL,
  id               uuid NOT NULL,
  cron             text NOT NULL,
  timezone         text NOT NULL,
  job              bytea NOT NULL,
  overlap          smallint NOT NULL CHECK (overlap IN (0, 1)),
  catch_up         smallint NOT NULL CHECK (catch_up IN (0, 1, 2)),
  status           smallint NOT NULL CHECK (status IN (1, 2)),
  description      text NOT NULL,
  metadata         jsonb,
  version          bigint NOT NULL DEFAULT 1,
  updated_at       timestamptz NOT NULL,
  next_at          timestamptz,        -- NULL: it does not fire
  last_fired_at    timestamptz,
  last_job_id      uuid,
  last_skipped_at  timestamptz,
  skipped          bigint NOT NULL DEFAULT 0,
  last_error       text,
  open_jobs        uuid[] NOT NULL DEFAULT '{}',   -- its newest jobs that were not finished at the last look
  PRIMARY KEY (tenant_id, id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0, vacuum_truncate = false);
CREATE INDEX schedules_due ON ringback.schedules (next_at) WHERE next_at IS NOT NULL;

-- Which schedule made a job, and for which of its times (NULL: by hand).
ALTER TABLE ringback.jobs ADD COLUMN schedule_id uuid, ADD COLUMN nominal_at timestamptz;
