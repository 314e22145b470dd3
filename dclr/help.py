"""Help that a newcomer reads first: one screen, shown before anything slow is imported."""

PRETRAIN = """\
usage: dclr pretrain [--preset NAME] [--config FILE] [--method NAME] [--SECTION.NAME VALUE ...]

Pretrain an encoder on videos.

  dclr pretrain --data.dataset folder --data.root my_videos --output runs/mine
  dclr pretrain --preset dclr_ucf101 --data.root /data/UCF-101 --encoder r3d_18
  dclr pretrain --preset fame_k400 --data.root /data/k400 --train.batch 256 --optim.scale-lr
  dclr pretrain --resume --output runs/mine
  torchrun --nproc-per-node 8 -m dclr pretrain --preset dclr_k400 --data.root /data/k400

Where settings come from; what is further down wins:
  --preset NAME         dclr_ucf101 dclr_k400 simclr_ucf101 moco_ucf101 official_release
                        fame_ucf101 fame_k400 dualvar_ucf101 dualvar_ucf101_moco dualvar_k400
                        dualvar_only_seg demo demo_vanilla demo_vs demo_vd
                        or a row of the papers' tables; --list-presets explains all
  --config FILE         YAML, as the config.yaml in the folder of a run
  --method NAME         dclr dclr_release simclr moco fame dualvar
  --SECTION.NAME VALUE  any setting

Settings that most runs need; --help-all lists all, with their defaults under the preset given:
  --output FOLDER       where the run is written
  --encoder NAME        r2plus1d_vcop r2plus1d_tv1111 r2plus1d_18 r2plus1d_tiny r3d_18 r3d_vcop
                        r3d18_hara mc3_18 r2d3d18 c3d s3d s3dg i3d
  --data.dataset NAME   ucf101 hmdb51 kinetics400 diving48, or folder: class folders or a list
  --data.root FOLDER    where the videos are
  --data.frames, --data.stride, --data.size      of a clip: frames, raw frames to the next, pixels
  --train.epochs, --train.batch, --train.device  how long, videos a step, cpu or cuda
  --optim.lr RATE       learning rate; with --optim.scale-lr that of a batch of 64

Going on with a run that was stopped; Ctrl-C, SIGTERM and SIGHUP save it first:
  --resume              from the last checkpoint in --output, with the settings of the run
  --resume-or-start     the same, or from the start where there is none: for jobs sent again
  --allow-changes       even with settings under which the steps so far would have been others
"""
