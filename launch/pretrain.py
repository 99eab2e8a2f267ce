"""Stage 1 under a launcher.

deepspeed --num_gpus 8 launch/pretrain.py --run-dir runs/NAME --data s3://bucket/corpus --recipe sage-phoenix14t
deepspeed --hostfile hosts launch/pretrain.py --run-dir ... --data ... --recipe ... pretrain.batch_size=4096
torchrun --nproc_per_node 2 launch/pretrain.py --run-dir runs/NAME --data ... --recipe ...
srun --ntasks 8 python launch/pretrain.py --run-dir ... --data ... --recipe ...
python launch/pretrain.py ...            (one process)
"""

import sys

from sage_scale.training.entry import main

if __name__ == "__main__":
    sys.exit(main("pretrain"))
