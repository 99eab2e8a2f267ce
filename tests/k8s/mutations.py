"""Mutations of the renderings, each with what is said of it and a valid twin: the same place, changed soundly."""

from __future__ import annotations

from typing import Any, NamedTuple

from k8s.objects import GONE

Change = tuple[str, str, Any]
"""Object (KIND or KIND/NAME), path and value, as `changed` takes them."""


class Mutation(NamedTuple):
    """`said` is a part of the line that names the fault."""

    name: str
    overlay: str
    said: str
    changes: list[Change]
    twin: list[Change]


JOB = "spec.replicatedJobs.0.template.spec"
POD = f"{JOB}.template.spec"
NODE = f"{POD}.containers.0"
CODES = f"{JOB}.podFailurePolicy.rules.0.onExitCodes"
CLUSTER = "spec.rayClusterSpec"
HEAD = f"{CLUSTER}.headGroupSpec.template.spec"
GROUP = f"{CLUSTER}.workerGroupSpecs.0"
WORKER = f"{GROUP}.template.spec"
CHECK = "spec.submitterPodTemplate.spec.initContainers.0"
ENTRY = "sage-scale precompute --corpus synthetic --root /data/corpus --out {} --recipe /recipe/recipe.yaml{}"
DIGEST = "registry.example/sage-scale@sha256:" + "a" * 64
JOBSET, RAYJOB = "JobSet/pretrain", "RayJob/precompute"


BROKEN_RULES = [Mutation(*row) for row in [
    # Those that schemas let pass, as met.
    ("no restartPolicy beside podFailurePolicy", "gpu-cluster", "needs restartPolicy Never, not the default",
     [(JOBSET, f"{POD}.restartPolicy", GONE)], [(JOBSET, f"{POD}.restartPolicy", "Never")]),
    ("restartPolicy OnFailure", "gpu-cluster", "needs restartPolicy Never, not OnFailure",
     [(JOBSET, f"{POD}.restartPolicy", "OnFailure")], [(JOBSET, f"{POD}.dnsPolicy", "ClusterFirst")]),
    ("exit code 0", "gpu-cluster", "exit code 0 is no failure",
     [(JOBSET, f"{CODES}.values", [0, 2, 3])], [(JOBSET, f"{CODES}.values", [2, 3])]),
    ("unsorted exit codes", "gpu-cluster", "exit codes [3, 2] are not sorted",
     [(JOBSET, f"{CODES}.values", [3, 2])], [(JOBSET, f"{CODES}.containerName", "node")]),
    ("unknown container", "gpu-cluster", "names container trainer, which is not there",
     [(JOBSET, f"{CODES}.containerName", "trainer")], [(JOBSET, f"{CODES}.containerName", GONE)]),
    ("unknown target job", "gpu-cluster", "names job nodes, which is not there",
     [(JOBSET, "spec.failurePolicy.rules.0.targetReplicatedJobs", ["nodes"])],
     [(JOBSET, "spec.failurePolicy.rules.0.targetReplicatedJobs", ["node"])]),
    ("mount without volume", "gpu-cluster", "mount of volume scratch, which the pod has not",
     [(JOBSET, f"{NODE}.volumeMounts.5", {"name": "scratch", "mountPath": "/scratch"})],
     [(JOBSET, f"{NODE}.volumeMounts.5", {"name": "scratch", "mountPath": "/scratch"}),
      (JOBSET, f"{POD}.volumes.5", {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}})]),
    ("GPU limit unlike request", "gpu-cluster", "limit of nvidia.com/gpu (8) is not its request (4)",
     [(JOBSET, f"{NODE}.resources.limits.nvidia~com/gpu", "8")],
     [(JOBSET, f"{NODE}.resources.limits.cpu", "48"), (JOBSET, f"{NODE}.resources.requests.cpu", "48")]),
    ("a name that is too long", "gpu-cluster", "name has more than 47 characters",
     [(RAYJOB, "metadata.name", "p" * 61)], [(RAYJOB, "metadata.name", "p" * 47)]),
    ("a JobSet's name whose pods' names are too long", "gpu-cluster", "which is no DNS label of 63 characters",
     [(JOBSET, "metadata.name", "p" * 61)], [(JOBSET, "metadata.name", "p" * 48)]),
    ("a name in capitals", "gpu-cluster", "name is not a DNS label",
     [(JOBSET, "metadata.name", "Pretrain")], [(JOBSET, "metadata.name", "pretrain-2")]),
    ("no image", "gpu-cluster", "no image",
     [(JOBSET, f"{NODE}.image", GONE)], [(JOBSET, f"{NODE}.image", DIGEST)]),
    ("min above max replicas", "gpu-cluster", "minReplicas 5 above maxReplicas 4",
     [(RAYJOB, f"{GROUP}.minReplicas", 5), (RAYJOB, f"{GROUP}.replicas", 5)],
     [(RAYJOB, f"{GROUP}.minReplicas", 4), (RAYJOB, f"{GROUP}.replicas", 4)]),
    ("suspend without shutdown", "gpu-cluster", "suspend needs shutdownAfterJobFinishes",
     [(RAYJOB, "spec.suspend", True), (RAYJOB, "spec.shutdownAfterJobFinishes", False)],
     [(RAYJOB, "spec.suspend", True)]),
    ("clusterSelector beside a specification", "gpu-cluster", "one of rayClusterSpec and clusterSelector",
     [(RAYJOB, "spec.clusterSelector", {"ray.io/cluster": "mine"})], [(RAYJOB, "spec.metadata", {"owner": "me"})]),
    ("neither of them", "gpu-cluster", "one of rayClusterSpec and clusterSelector",
     [(RAYJOB, "spec.rayClusterSpec", GONE)], [(RAYJOB, "spec.backoffLimit", 0)]),
    ("deadline 0", "gpu-cluster", "activeDeadlineSeconds is not positive",
     [(RAYJOB, "spec.activeDeadlineSeconds", 0)], [(RAYJOB, "spec.activeDeadlineSeconds", 3600)]),
    ("no deadline for the start", "gpu-cluster", "preRunningDeadlineSeconds is not positive",
     [(RAYJOB, "spec.preRunningDeadlineSeconds", GONE)], [(RAYJOB, "spec.preRunningDeadlineSeconds", 600)]),
    ("mistyped mode", "gpu-cluster", "submissionMode K8SJobMode",
     [(RAYJOB, "spec.submissionMode", "K8SJobMode")], [(RAYJOB, "spec.ttlSecondsAfterFinished", 0)]),
    ("wrong rayVersion", "gpu-cluster", "rayVersion 2.9.0 is not the image's",
     [(RAYJOB, f"{CLUSTER}.rayVersion", "2.9.0")], [(RAYJOB, f"{GROUP}.idleTimeoutSeconds", 60)]),
    ("dangling ConfigMap", "gpu-cluster", "no ConfigMap recipe",
     [(JOBSET, f"{POD}.volumes.0.configMap.name", "recipe")], [(JOBSET, f"{POD}.volumes.0.configMap.optional", False)]),
    ("dangling claim", "single-node", "no PersistentVolumeClaim corpus",
     [(JOBSET, f"{POD}.volumes.5.persistentVolumeClaim.claimName", "corpus")],
     [(JOBSET, f"{POD}.volumes.5.persistentVolumeClaim.readOnly", False)]),
    ("dangling service account", "gpu-cluster", "no ServiceAccount trainer",
     [(JOBSET, f"{POD}.serviceAccountName", "trainer")], [(JOBSET, f"{POD}.enableServiceLinks", False)]),
    ("dangling queue", "queued", "no LocalQueue gpus",
     [(JOBSET, "metadata.labels.kueue~x-k8s~io/queue-name", "gpus")], [("LocalQueue", "spec.clusterQueue", "gpus")]),
    ("a version of Kueue's that is gone", "queued", "is not served by Kueue 0.20",
     [("LocalQueue", "apiVersion", "kueue.x-k8s.io/v1beta1")], [("LocalQueue", "spec.stopPolicy", "Hold")]),
    ("dangling runtime", "trainjob", "no TrainingRuntime torch-distributed",
     [("TrainJob", "spec.runtimeRef.name", "torch-distributed")], [("TrainJob", "spec.suspend", True)]),
    ("dangling secret", "queued", "envFrom of an unknown secret",
     [(JOBSET, f"{NODE}.envFrom.0.secretRef.name", "keys")], [(JOBSET, f"{NODE}.envFrom.0.secretRef.optional", True)]),
    # Our own.
    ("image by tag", "gpu-cluster", "has no digest",
     [(JOBSET, f"{NODE}.image", "registry.example/sage-scale:latest")], [(JOBSET, f"{NODE}.image", DIGEST)]),
    ("root in the container", "gpu-cluster", "may run as root",
     [(RAYJOB, f"{WORKER}.securityContext.runAsUser", 0)], [(RAYJOB, f"{WORKER}.securityContext.runAsUser", 2000)]),
    ("a writable root", "gpu-cluster", "more rights than none",
     [(RAYJOB, f"{WORKER}.containers.0.securityContext.readOnlyRootFilesystem", False)],
     [(RAYJOB, f"{WORKER}.containers.0.securityContext.runAsNonRoot", True)]),
    ("no token", "gpu-cluster", "no token",
     [(RAYJOB, f"{CLUSTER}.authOptions.mode", "disabled")], [(RAYJOB, f"{CLUSTER}.authOptions.secretName", "mine")]),
    ("actors on the head", "gpu-cluster", "actors would run on the head",
     [(RAYJOB, f"{CLUSTER}.headGroupSpec.rayStartParams.num-cpus", "2")],
     [(RAYJOB, f"{CLUSTER}.headGroupSpec.rayStartParams.object-store-memory", "500000000")]),
    ("a wrong recipe restarted ten times", "gpu-cluster", "is restarted 10 times",
     [(JOBSET, "spec.failurePolicy.rules", GONE)], [(JOBSET, "spec.failurePolicy.maxRestarts", 3)]),
    ("a stop that counts as a failure", "gpu-cluster", "exit code 130 should be Ignore",
     [(JOBSET, f"{JOB}.podFailurePolicy.rules.1", GONE)],
     [(JOBSET, f"{JOB}.podFailurePolicy.rules.1.onExitCodes.containerName", GONE)]),
    ("an eviction that counts as a failure", "gpu-cluster", "an evicted pod counts as a failure",
     [(JOBSET, f"{JOB}.podFailurePolicy.rules.2", GONE)],
     [(JOBSET, f"{JOB}.podFailurePolicy.rules.2.onPodConditions.0.status", GONE)]),
    ("pods that wait for others to end", "gpu-cluster", "completions 2 and parallelism 1 differ",
     [(JOBSET, f"{JOB}.parallelism", 1)], [(JOBSET, f"{JOB}.podReplacementPolicy", "TerminatingOrFailed")]),
    ("a variable in the entrypoint", "gpu-cluster", "read by a shell",
     [(RAYJOB, "spec.entrypoint", ENTRY.format("$SHARDS", ""))],
     [(RAYJOB, "spec.entrypoint", ENTRY.format("s3://BUCKET/shards", " --extend"))]),
    ("a key in a file", "gpu-cluster", "is a secret in a file",
     [(JOBSET, f"{NODE}.env.8", {"name": "AWS_SECRET_ACCESS_KEY", "value": "k"})],
     [(JOBSET, f"{NODE}.env.8", {"name": "AWS_REGION", "value": "eu-central-1"})]),
    ("HOME on the read-only root", "gpu-cluster", "HOME=/root lies in no emptyDir",
     [(JOBSET, f"{NODE}.env.1.value", "/root")], [(JOBSET, f"{NODE}.env.1.value", "/home/sage/deep")]),
    ("two volumes at one path", "gpu-cluster", "two volumes at one path",
     [(JOBSET, f"{NODE}.volumeMounts.1.mountPath", "/tmp")],
     [(JOBSET, f"{NODE}.volumeMounts.1.readOnly", False)]),
    ("no shared memory", "gpu-cluster", "/dev/shm is not in memory",
     [(JOBSET, f"{POD}.volumes.4.emptyDir.medium", GONE)], [(JOBSET, f"{POD}.volumes.4.emptyDir.sizeLimit", "4Gi")]),
    ("no time to save in", "gpu-cluster", "less than 120 s",
     [(JOBSET, f"{POD}.terminationGracePeriodSeconds", GONE)], [(JOBSET, f"{POD}.terminationGracePeriodSeconds", 120)]),
    ("pods outside the network policy", "gpu-cluster", "no network policy",
     [(RAYJOB, f"{GROUP}.template.metadata.labels", {})],
     [(RAYJOB, f"{GROUP}.template.metadata.labels.team", "vision")]),
    ("Kueue and Ray both scale", "queued", "no in-tree autoscaling",
     [(RAYJOB, f"{CLUSTER}.enableInTreeAutoscaling", True), (RAYJOB, f"{HEAD}.automountServiceAccountToken", True)],
     [(RAYJOB, f"{GROUP}.replicas", 4)]),
    ("workers that no one asks for", "queued", "nothing that would ask for one",
     [(RAYJOB, f"{GROUP}.replicas", 0), (RAYJOB, f"{GROUP}.minReplicas", 0)],
     [(RAYJOB, f"{GROUP}.replicas", 1), (RAYJOB, f"{GROUP}.minReplicas", 1)]),
    ("actors that fill the pod's memory", "gpu-cluster", "may outgrow the pod's memory",
     [(RAYJOB, f"{GROUP}.rayStartParams.memory", GONE)], [(RAYJOB, f"{GROUP}.rayStartParams.memory", "58000000000")]),
    ("a restarted pod under autoscaler v2", "gpu-cluster", "restartPolicy Always under autoscaler v2",
     [(RAYJOB, f"{WORKER}.restartPolicy", "Always")], [(RAYJOB, f"{WORKER}.restartPolicy", GONE)]),
    ("a coordinator that is not there", "gpu-cluster", "the coordinator's pod is not there",
     [(JOBSET, "spec.coordinator.podIndex", 2)], [(JOBSET, "spec.coordinator.podIndex", 1)]),
    ("no coordinator to ask", "gpu-cluster", "comes from a coordinator, and none is named",
     [(JOBSET, "spec.coordinator", GONE)],
     [(JOBSET, "spec.coordinator", GONE), (JOBSET, f"{NODE}.env.0", {"name": "PET_MASTER_ADDR", "value": "a.b"})]),
    ("more clusters by each retry", "gpu-cluster", "each retry makes a new cluster",
     [(RAYJOB, "spec.backoffLimit", 3)], [(RAYJOB, "spec.submitterConfig", {"backoffLimit": 3})]),
    ("a TrainJob of another size", "trainjob", "numNodes 3 is not the runtime's 2",
     [("TrainJob", "spec.trainer.numNodes", 3)], [("TrainJob", "spec.activeDeadlineSeconds", 86400)]),
    ("pods that Trainer does not find", "trainjob", "Trainer wants one job of step trainer",
     [("TrainingRuntime", "spec.template.spec.replicatedJobs.0.template.metadata", GONE)],
     [("TrainingRuntime", "spec.template.spec.replicatedJobs.0.template.metadata.labels.team", "vision")]),
]]  # fmt: skip
"""What no schema refuses: the operators would, or it would go wrong later."""

BROKEN_COMMANDS = [Mutation(*row) for row in [
    ("mistyped option of the entrypoint", "gpu-cluster", "No such option",
     [(RAYJOB, "spec.entrypoint", ENTRY.format("s3://BUCKET/shards", " --overwite"))],
     [(RAYJOB, "spec.entrypoint", ENTRY.format("s3://BUCKET/shards", " --overwrite"))]),
    ("mistyped verb of the entrypoint", "gpu-cluster", "did you mean 'precompute'?",
     [(RAYJOB, "spec.entrypoint", ENTRY.format("s3://BUCKET/shards", "").replace("precompute", "precomput"))],
     [(RAYJOB, "spec.entrypoint", ENTRY.format("s3://BUCKET/shards", " --retry-rejects"))]),
    ("a mistyped key", "gpu-cluster", "precompute.actor",
     [(RAYJOB, "spec.entrypoint", ENTRY.format("s3://BUCKET/shards", " precompute.actor=4"))],
     [(RAYJOB, "spec.entrypoint", ENTRY.format("s3://BUCKET/shards", " precompute.actors=4"))]),
    ("a pod fewer than --nodes", "gpu-cluster", "--nodes 2, and 1 pods",
     [(JOBSET, f"{JOB}.parallelism", 1), (JOBSET, f"{JOB}.completions", 1)],
     [(JOBSET, f"{JOB}.parallelism", 1), (JOBSET, f"{JOB}.completions", 1), (JOBSET, f"{NODE}.args.5", "--nodes=1")]),
    ("fewer GPUs than ranks", "gpu-cluster", "--ranks 4, and 2 GPUs",
     [(JOBSET, f"{NODE}.resources.limits.nvidia~com/gpu", "2"),
      (JOBSET, f"{NODE}.resources.requests.nvidia~com/gpu", "2")],
     [(JOBSET, f"{NODE}.resources.limits.nvidia~com/gpu", "2"),
      (JOBSET, f"{NODE}.resources.requests.nvidia~com/gpu", "2"), (JOBSET, f"{NODE}.args.6", "--ranks=2")]),
    ("more ranks than lanes", "gpu-cluster", "16 ranks, and stream.lanes is 8",
     [(JOBSET, f"{NODE}.args.6", "--ranks=8"), (JOBSET, f"{NODE}.resources.limits.nvidia~com/gpu", "8"),
      (JOBSET, f"{NODE}.resources.requests.nvidia~com/gpu", "8")],
     [(JOBSET, f"{NODE}.args.6", "--ranks=8"), (JOBSET, f"{NODE}.resources.limits.nvidia~com/gpu", "8"),
      (JOBSET, f"{NODE}.resources.requests.nvidia~com/gpu", "8"), (JOBSET, f"{NODE}.args.9", "stream.lanes=16")]),
    ("a probe of a port that nothing serves", "gpu-cluster", "probes port 9401, and watch.http_port is 9400",
     [(JOBSET, f"{NODE}.readinessProbe.httpGet.port", 9401)], [(JOBSET, f"{NODE}.readinessProbe.httpGet.port", 9400)]),
    ("training on other shards", "gpu-cluster", "differ",
     [(JOBSET, f"{NODE}.args.3", "--data=s3://BUCKET/old")], [(JOBSET, f"{NODE}.args.3", "--data=s3://BUCKET/shards")]),
    ("stages of two runs", "gpu-cluster", "run: ",
     [(JOBSET, f"{NODE}.args.2", "--run=s3://BUCKET/runs/other")], [(JOBSET, f"{NODE}.args.7", "--master-port=20000")]),
    ("no check before workers are paid", "gpu-cluster", "nothing checks",
     [(RAYJOB, "spec.submitterPodTemplate.spec.initContainers", GONE)],
     [(RAYJOB, f"{CHECK}.name", "check-first")]),
]]  # fmt: skip
"""Commands that the command line refuses, or that contradict the manifest around them."""
