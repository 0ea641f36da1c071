-- A journal of schema version 3, written by the code of that version on 2026-11-25. It never changes.
BEGIN TRANSACTION;
CREATE TABLE attempts (
            key VARCHAR(64) NOT NULL, pack_id VARCHAR(260) NOT NULL, number INTEGER NOT NULL, fence INTEGER NOT NULL,
            rung INTEGER NOT NULL, state VARCHAR(16) NOT NULL, started DOUBLE PRECISION NOT NULL, ended DOUBLE PRECISION,
            metered_s DOUBLE PRECISION NOT NULL, reason TEXT, storage_uri TEXT, cells TEXT NOT NULL, layout TEXT NOT NULL,
            device_kind VARCHAR(64) NOT NULL, PRIMARY KEY (key, pack_id, number));
INSERT INTO "attempts" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','mlp@digits/r0/0',1,1,0,'failed',1790000003.0,1790000004.0,3.5,'the worker process died',NULL,'["0000000000000000000000000000000000000000000000000000000000000000", "0000000000000000000000000000000000000000000000000000000000000001", "0000000000000000000000000000000000000000000000000000000000000002"]','{"members":3,"pid":17}','cpu');
INSERT INTO "attempts" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','mlp@digits/r0/0',2,1,0,'done',1790000005.0,1790000006.0,1.75,NULL,'/storage/aaaa/packs/mlp-digits-r0-0/a2','["0000000000000000000000000000000000000000000000000000000000000000", "0000000000000000000000000000000000000000000000000000000000000001", "0000000000000000000000000000000000000000000000000000000000000002"]','{"members":3,"pid":18}','cpu');
CREATE TABLE budgets (
            team VARCHAR(100) PRIMARY KEY, limit_cpu_s DOUBLE PRECISION, limit_gpu_s DOUBLE PRECISION,
            changed DOUBLE PRECISION NOT NULL);
INSERT INTO "budgets" VALUES('vision',36000.0,NULL,1.79557547459120798115e+09);
CREATE TABLE cell_scores (
            cell VARCHAR(64) NOT NULL, epoch INTEGER NOT NULL, metrics TEXT NOT NULL, storage_uri TEXT NOT NULL,
            pack_id TEXT NOT NULL, attempt INTEGER NOT NULL, seconds DOUBLE PRECISION NOT NULL, failed TEXT,
            PRIMARY KEY (cell, epoch));
INSERT INTO "cell_scores" VALUES('0000000000000000000000000000000000000000000000000000000000000000',3,'{"accuracy":0.9,"log_loss":0.3}','/storage/aaaa/packs/mlp-digits-r0-0/a2','mlp@digits/r0/0',2,0.5,NULL);
INSERT INTO "cell_scores" VALUES('0000000000000000000000000000000000000000000000000000000000000001',3,'{"accuracy":0.91,"log_loss":0.3}','/storage/aaaa/packs/mlp-digits-r0-0/a2','mlp@digits/r0/0',2,0.5,NULL);
INSERT INTO "cell_scores" VALUES('0000000000000000000000000000000000000000000000000000000000000002',3,'{"accuracy":0.92,"log_loss":0.3}','/storage/aaaa/packs/mlp-digits-r0-0/a2','mlp@digits/r0/0',2,0.5,'diverged: log_loss is not a finite number');
CREATE TABLE decisions (
            number INTEGER PRIMARY KEY, at DOUBLE PRECISION NOT NULL, kind VARCHAR(32) NOT NULL, subject TEXT NOT NULL,
            actor TEXT NOT NULL, evidence TEXT NOT NULL, reasons TEXT NOT NULL, outcome TEXT NOT NULL,
            once VARCHAR(300) UNIQUE, previous VARCHAR(64) NOT NULL, digest VARCHAR(64) NOT NULL);
INSERT INTO "decisions" VALUES(1,1790000007.0,'rung','mlp@digits','halving','{"epoch":3,"kept":["0000000000000000000000000000000000000000000000000000000000000001"],"scores":{"0000000000000000000000000000000000000000000000000000000000000000":0.9,"0000000000000000000000000000000000000000000000000000000000000001":0.91}}','["best 1 of 2 by accuracy at epoch 3"]','1 go on, 1 stop','rung/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/mlp@digits/0','0000000000000000000000000000000000000000000000000000000000000000','4d7a023a1b46515bfbe802f86edeeefed15f607f02ea636d901db8268f304d8c');
INSERT INTO "decisions" VALUES(2,1790000008.0,'promotion','first-sweep.digits','someone','{"gain":0.01}','["besser","mieux \u00e9t\u00e9"]','promoted',NULL,'4d7a023a1b46515bfbe802f86edeeefed15f607f02ea636d901db8268f304d8c','1e95f4d4a2c9ded687bacd82cbb6302f9505632b4101858a94307491cfde76ce');
CREATE TABLE holds (
            id VARCHAR(32) PRIMARY KEY, team VARCHAR(100) NOT NULL, key VARCHAR(64) NOT NULL, fence INTEGER NOT NULL,
            pack_id VARCHAR(260) NOT NULL, at DOUBLE PRECISION NOT NULL, cpu_s DOUBLE PRECISION NOT NULL,
            gpu_s DOUBLE PRECISION NOT NULL, state VARCHAR(16) NOT NULL);
INSERT INTO "holds" VALUES('69ce613994d9497fad35ca7dcc813adb','vision','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc',1,'mlp@digits/r0/0',1.79557547459328079226e+09,40.0,0.0,'settled');
INSERT INTO "holds" VALUES('ed3ee18339ee453396d0b4c4c73bf950','vision','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc',1,'mlp@digits/r1/0',1.79557547459409904484e+09,60.0,0.0,'held');
CREATE TABLE launches (
            key VARCHAR(64) PRIMARY KEY, experiment VARCHAR(100) NOT NULL, launch_id VARCHAR(32) NOT NULL,
            state VARCHAR(16) NOT NULL, fence INTEGER NOT NULL, owner TEXT NOT NULL, lease_until DOUBLE PRECISION NOT NULL,
            started DOUBLE PRECISION NOT NULL, ended DOUBLE PRECISION, parent_run_id VARCHAR(64), spec TEXT NOT NULL,
            summary TEXT NOT NULL);
INSERT INTO "launches" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','first-sweep','b4692f1c1ca5402cb0d223df004e92d0','finished',1,'{"host": "a-host-that-is-gone", "pid": 4242, "started": 1789999000.5, "job": "raysubmit_1"}',0.0,1790000002.0,1790000012.0,'0123456789abcdef','{"name": "first-sweep"}','{"best":{"digits":"0000000000000000000000000000000000000000000000000000000000000001"}}');
INSERT INTO "launches" VALUES('bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','first-sweep','82fa9591cf784350a78bd522b0c52aed','running',1,'{"host": "a-host-that-is-gone", "pid": 4242, "started": 1789999000.5, "job": "raysubmit_1"}',1790000073.0,1790000013.0,NULL,NULL,'{"name": "first-sweep"}','{}');
INSERT INTO "launches" VALUES('cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','second-sweep','f50d1094bffe4df5891879f132d51d91','running',1,'{"host": "a-host-that-is-gone", "pid": 4242, "started": 1789999000.5, "job": ""}',2.79557547459195899954e+09,1.79557547459195876123e+09,NULL,NULL,'{}','{}');
CREATE TABLE spend (
            id VARCHAR(32) PRIMARY KEY, key VARCHAR(64) NOT NULL, what VARCHAR(32) NOT NULL, at DOUBLE PRECISION NOT NULL,
            wall_s DOUBLE PRECISION NOT NULL, cpu_s DOUBLE PRECISION NOT NULL, gpu_s DOUBLE PRECISION NOT NULL);
INSERT INTO "spend" VALUES('ad71f5509b0a4d07a7666b3e0cfa36b0','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','pack',1790000009.0,5.25,5.0,0.0);
INSERT INTO "spend" VALUES('92a8456af38e4d5b8cd46497bdad73d4','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','driver',1790000010.0,9.0,2.5,0.0);
CREATE TABLE test_looks (
            id VARCHAR(32) PRIMARY KEY, key VARCHAR(64) NOT NULL, dataset VARCHAR(100) NOT NULL, at DOUBLE PRECISION NOT NULL,
            cells TEXT NOT NULL);
INSERT INTO "test_looks" VALUES('9b5531f0ee6f4b08a0c1b9dea74fa952','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','digits',1790000011.0,'["0000000000000000000000000000000000000000000000000000000000000001"]');
CREATE TABLE tiltyard_schema (version INTEGER PRIMARY KEY, applied DOUBLE PRECISION NOT NULL);
INSERT INTO "tiltyard_schema" VALUES(1,1790000001.0);
INSERT INTO "tiltyard_schema" VALUES(2,1.79557547459052562711e+09);
INSERT INTO "tiltyard_schema" VALUES(3,1790000029.0);
CREATE TABLE trials (
            key VARCHAR(64) NOT NULL, cell VARCHAR(64) NOT NULL, grp VARCHAR(210) NOT NULL, idx INTEGER NOT NULL,
            variant VARCHAR(100) NOT NULL, model TEXT NOT NULL, dataset VARCHAR(100) NOT NULL,
            dataset_version INTEGER NOT NULL, config TEXT NOT NULL, seed BIGINT NOT NULL, data_seed BIGINT NOT NULL,
            state VARCHAR(16) NOT NULL, epoch INTEGER NOT NULL, score DOUBLE PRECISION, reason TEXT,
            PRIMARY KEY (key, cell));
INSERT INTO "trials" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','0000000000000000000000000000000000000000000000000000000000000000','mlp@digits',0,'mlp','mlp','digits',3,'{"hidden":[64,32],"lr":0.01}',2147483647,0,'stopped',3,0.9,'not among the best 1 of 2 at epoch 3');
INSERT INTO "trials" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','0000000000000000000000000000000000000000000000000000000000000001','mlp@digits',1,'mlp','mlp','digits',3,'{"hidden":[64,32],"lr":0.02}',2147483646,0,'done',9,0.91,NULL);
INSERT INTO "trials" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','0000000000000000000000000000000000000000000000000000000000000002','mlp@digits',2,'mlp','mlp','digits',3,'{"hidden":[64,32],"lr":0.03}',2147483645,0,'failed',0,NULL,'diverged: log_loss is not a finite number');
CREATE TABLE watermarks (name VARCHAR(300) PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO "watermarks" VALUES('evaluate/digits','3');
CREATE TABLE work_results (
            key VARCHAR(64) NOT NULL, revision INTEGER NOT NULL, at DOUBLE PRECISION NOT NULL, cause TEXT NOT NULL,
            result TEXT NOT NULL, PRIMARY KEY (key, revision));
INSERT INTO "work_results" VALUES('eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',1,1790000031.0,'first','{"accuracy":0.9}');
CREATE TABLE works (
            key VARCHAR(64) PRIMARY KEY, kind VARCHAR(32) NOT NULL, subject VARCHAR(300) NOT NULL, about TEXT NOT NULL,
            state VARCHAR(16) NOT NULL, fence INTEGER NOT NULL, owner TEXT NOT NULL, lease_until DOUBLE PRECISION NOT NULL,
            started DOUBLE PRECISION NOT NULL, ended DOUBLE PRECISION, reason TEXT);
INSERT INTO "works" VALUES('eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','evaluation','demo.digits@1','{"dataset":"digits@3"}','finished',1,'{"host": "a-host-that-is-gone", "pid": 4243, "started": 1790000020.5, "job": ""}',0.0,1790000030.0,1790000031.0,NULL);
CREATE INDEX launches_experiment ON launches (experiment);
CREATE INDEX trials_cell ON trials (cell);
CREATE INDEX spend_key ON spend (key);
CREATE INDEX holds_team ON holds (team);
CREATE INDEX works_subject ON works (kind, subject);
COMMIT;
