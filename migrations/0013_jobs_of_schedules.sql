-- The jobs of a schedule, for `GET /v1/jobs?schedule_id=`. Jobs that no schedule made are not in it, and pay nothing.
CREATE INDEX jobs_schedule ON ringback.jobs (tenant_id, schedule_id, id) WHERE schedule_id IS NOT NULL;
