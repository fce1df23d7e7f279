BEGIN TRANSACTION;
CREATE TABLE attempts (id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs(id),
                       number INTEGER NOT NULL, state TEXT NOT NULL, path TEXT NOT NULL,
                       host TEXT NOT NULL, gpus TEXT NOT NULL, code TEXT,
                       launched REAL NOT NULL, ended REAL,
                       exit_code INTEGER, message TEXT, traceback TEXT, result TEXT,
                       UNIQUE (run, number));
INSERT INTO "attempts" VALUES(1,1,1,'crashed','attempts/000/seed42/1','box','0,1','abc',1010.0,1020.0,1,'it broke','Traceback',NULL);
INSERT INTO "attempts" VALUES(2,1,2,'finished','attempts/000/seed42/2','box','0,1','abc',1030.0,1040.0,0,NULL,NULL,'{"schema": 1, "status": "finished", "seed": 42, "metric": "sliding", "val_bpb": 1.1, "val_loss": 2.5, "prequant_val_bpb": 1.09, "quant_val_bpb": 1.12, "steps": 6, "train_time_ms": 60.0, "step_avg_ms": 10.0, "eval_time_s": 0.1, "bytes_total": 150, "bytes_code": 50, "bytes_model": 100, "artifact": "final_model.int6.ptz", "stop_reason": "iterations"}');
INSERT INTO "attempts" VALUES(3,2,1,'launched','attempts/001/seed42/1','box','0,1','abc',1050.0,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE runs (id INTEGER PRIMARY KEY, trial INTEGER NOT NULL REFERENCES trials(number),
                   seed INTEGER NOT NULL, state TEXT NOT NULL, UNIQUE (trial, seed));
INSERT INTO "runs" VALUES(1,0,42,'finished');
INSERT INTO "runs" VALUES(2,1,42,'running');
INSERT INTO "runs" VALUES(3,0,314,'pending');
INSERT INTO "runs" VALUES(4,1,314,'pending');
INSERT INTO "runs" VALUES(5,0,999,'pending');
INSERT INTO "runs" VALUES(6,1,999,'pending');
CREATE TABLE sweep (uid TEXT NOT NULL, name TEXT NOT NULL, created REAL NOT NULL,
                    spec TEXT NOT NULL);
INSERT INTO "sweep" VALUES('a210dfe09412431b881c69f4631e070f','small',1000.0,'{"name":"small","seeds":[42,314,999],"metric":"val_bpb","workload":{"module":"model.train","launch":"torchrun"},"resources":{"gpus_per_run":2,"cpus_per_run":1,"processes_per_run":null,"max_parallel":null},"limits":{"max_seconds":null,"grace_seconds":10.0,"max_attempts":2},"budget":{"max_bytes":16000000},"env":{"ITERATIONS":6},"trial":[{"name":"low","env":{"LR":0.1}},{"name":"high","env":{"LR":0.2}}]}');
CREATE TABLE trials (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
                     config_hash TEXT NOT NULL UNIQUE, env TEXT NOT NULL);
INSERT INTO "trials" VALUES(0,'low','3b542d15c1a2','{"ITERATIONS": "6", "LR": "0.1"}');
INSERT INTO "trials" VALUES(1,'high','212d027c854d','{"ITERATIONS": "6", "LR": "0.2"}');
CREATE UNIQUE INDEX one_result ON attempts (run) WHERE state = 'finished';
COMMIT;
PRAGMA user_version = 1;
