"""Stage 2 under a launcher.

deepspeed --num_gpus 8 launch/finetune.py --run-dir runs/NAME --data s3://bucket/corpus --recipe sage-phoenix14t
deepspeed --hostfile hosts launch/finetune.py --run-dir ... --data ... --recipe ... finetune.batch_size=64
torchrun --nproc_per_node 2 launch/finetune.py --run-dir runs/NAME --data ... --recipe ...
srun --ntasks 8 python launch/finetune.py --run-dir ... --data ... --recipe ...
python launch/finetune.py ...            (one process)
"""

import sys

from sage_scale.training.entry import main

if __name__ == "__main__":
    sys.exit(main("finetune"))
