"""Nodes of Ray and what is on them. Pure."""

from __future__ import annotations

from tiltyard.telemetry.boards.shapes import CLUSTER, Board, panel

CPU = panel(
    "CPU",
    "percent",
    "Use of each node's cores.",
    (f"avg by (instance) (ray_node_cpu_utilization{{{CLUSTER}}})", "{{instance}}"),
)

MEMORY = panel(
    "Memory",
    "percentunit",
    "Use of each node's memory. Near 1 Ray kills workers.",
    (
        f"max by (instance) (ray_node_mem_used{{{CLUSTER}}}) / max by (instance) (ray_node_mem_total{{{CLUSTER}}})",
        "{{instance}}",
    ),
)

BOARD = Board(
    uid="tiltyard-cluster",
    title="Tiltyard: cluster",
    meaning="Nodes of Ray: cores, memory, disks, object store, GPUs.",
    variables=("cluster",),
    rows=(
        (
            "Nodes",
            (
                CPU,
                MEMORY,
                panel(
                    "Free disk",
                    "bytes",
                    "Where Ray keeps sessions and spills.",
                    (f"min by (instance) (ray_node_disk_free{{{CLUSTER}}})", "{{instance}}"),
                ),
            ),
        ),
        (
            "Object store",
            (
                panel(
                    "Objects by place",
                    "bytes",
                    "SPILLED is on disk: slower.",
                    (f"sum by (Location) (ray_object_store_memory{{{CLUSTER}}})", "{{Location}}"),
                    stacked=True,
                ),
            ),
        ),
        (
            "What Ray holds",
            (
                panel(
                    "Resources used",
                    "short",
                    "CPUs and GPUs that are taken, of those there are.",
                    (f'sum by (Name, State) (ray_resources{{{CLUSTER},Name=~"CPU|GPU"}})', "{{Name}} {{State}}"),
                ),
                panel(
                    "Actors",
                    "short",
                    "By state: the workers of sweeps and replicas.",
                    (f"sum by (State) (ray_actors{{{CLUSTER}}})", "{{State}}"),
                ),
                panel(
                    "Nodes and their CPUs",
                    "short",
                    "How many nodes there are, and how many CPUs they have together.",
                    (f"count(ray_node_cpu_count{{{CLUSTER}}})", "nodes"),
                    (f"sum(ray_node_cpu_count{{{CLUSTER}}})", "CPUs"),
                ),
                panel(
                    "Jobs of Ray",
                    "short",
                    "Drivers that run now, those of `ray job submit` among them; how launches ended is on Sweep.",
                    (f"sum(ray_running_jobs{{{CLUSTER}}})", "running"),
                ),
                panel(
                    "Workers that train",
                    "short",
                    "Packs that train now, of all experiments.",
                    (f"sum by (experiment) (ray_tiltyard_sweep_packs_running{{{CLUSTER}}})", "{{experiment}}"),
                ),
            ),
        ),
        (
            "GPUs",
            (
                panel(
                    "GPU use",
                    "percent",
                    "Near 0 while Ray says that it is taken: somebody holds what they do not use.",
                    (f"avg by (instance) (ray_node_gpus_utilization{{{CLUSTER}}})", "{{instance}}"),
                ),
                panel(
                    "GPU memory",
                    "decmbytes",
                    "Used, in MB.",
                    (f"sum by (instance) (ray_node_gram_used{{{CLUSTER}}})", "{{instance}}"),
                ),
            ),
        ),
    ),
)
