"""Every knob of the system with its default; experiment files change only what differs.

The defaults are the published settings of PrivImage for CIFAR-10 (Li et al., USENIX Security 2024). Any value can be
overridden on the command line: `privimage run --config configs/cifar10.py --workdir W --config.privacy.epsilon=1`.
"""

from ml_collections import ConfigDict

CLASSIFIERS = ("cnn", "resnet9", "resnet18", "resnet50", "resnet110", "wide_resnet", "resnext")  # the zoo's


def data_section() -> ConfigDict:
    """Where a labelled image set comes from; the same keys serve the sensitive and the public set."""
    data = ConfigDict()
    data.source = (
        "tfds"  # tfds|folder|zip|npz|idx|cifar|parquet|webdataset|digits|glyphs, or package.module:NAME of a Spec
    )
    data.name = ""  # tfds: the name of the set, such as "mnist"; idx: of one of several, such as "emnist-letters"
    data.data_dir = ""  # tfds: the folder of all prepared sets ("" = TFDS's default)
    data.path = ""  # the set's folder or file; tfds: the folder of one prepared set, in place of name and data_dir
    data.split = "train"  # the training part: a TFDS split, a subfolder, a part of arrays' or shards' names
    data.test_split = "test"  # the same of the part held out for evaluation
    data.test_fraction = 0.2  # share held out for evaluation where the source has no test part of its own
    data.validation_fraction = 0.0  # >0: evaluate on this share of the training part instead (to choose settings)
    data.image_key = "image"  # the feature, column, array or member that holds the images; "image" = the usual ones
    data.label_key = "label"  # the same of the labels; tfds: "attributes/Male" reads a nested one; "" = unlabelled
    data.labels = (
        "auto"  # where labels of pictures are: auto | folders | json | none | table:FILE:FILE_COLUMN:CLASS_COLUMN
    )
    data.first_label = 0  # the number of the first class, where labels are numbers
    data.person = ""  # whose image: column:NAME | array:NAME | feature:NAME | level:N (folder's) | pattern:REGEX | ""
    data.links = ""  # folder, shards: the one folder outside path into which symbolic links may lead; "" = none
    data.intensity = "full"  # what becomes 0 and 255: full (the type's whole range) | LOW:HIGH | per_image (its own)
    data.accept = ()  # findings of `privimage inspect` that shall not stop a run; "unlabelled", "other_files"
    data.class_names = ()  # the declared list of classes (public); () = as the source names them
    data.crop = 0  # side of the square cut from the centre before resizing, in pixels; 0 = the largest
    data.max_examples = 0  # keep only so many images (with privacy.unit=person: people) of the training part; 0 = all
    data.cache = True  # keep decoded images as a memory-mapped array under internal/cache
    data.residency = "auto"  # auto (people: sharded) | replicated (every device holds all images) | sharded (its share)
    data.seed = 0  # of the fixed permutation that parts train from test, and of the glyph drawing
    data.characters = ""  # glyphs: the characters to draw, one class each; "" = digits and Latin letters
    data.per_class = 200  # glyphs: images of each character
    data.style = "handwriting"  # glyphs: handwriting | print
    data.kwargs = ConfigDict()  # settings of a source from elsewhere, under any names
    return data


def get_config() -> ConfigDict:
    """The base configuration."""
    config = ConfigDict()
    config.name = "cifar10"  # shown as the report's title
    config.method = ""  # a method of the field, whose settings these are to be: see docs/methods.md; "" = none
    config.precision = "auto"  # auto (bfloat16 on accelerators, float32 on CPUs) | float32 | tf32 | bfloat16
    config.seed = 0  # of all public randomness: initial weights, public batches, sampling; never of privacy noise
    config.public_cache = ""  # a folder where runs share what they train on public images; "" = none
    config.private_cache = ""  # a folder where runs share what they find of real images without noise; "" = none

    config.data = data_section()  # the sensitive set
    config.data.name = "cifar10"
    config.data.n = 0  # training images, or people, N (public); 0 = count them; `privimage budget` needs it
    config.data.image_size = 32  # side of the images that the generator makes, in pixels
    config.data.channels = 3  # 1 = grey, 3 = RGB

    config.public = data_section()  # the public set; its classes are the semantics
    config.public.name = "imagenet_resized/32x32"
    config.public.test_split = "validation"

    config.privacy = ConfigDict()
    config.privacy.epsilon = 10.0  # the whole budget, over all mechanisms
    config.privacy.delta = 0.0  # 0 = 1 / (N ln N), or N^-1.5 below 5,000 records
    config.privacy.unit = "image"  # what is protected: image | person (all images of one, see config.data.person)
    config.privacy.accountant = "pld"  # pld (tight) | rdp (the paper's)
    config.privacy.fixed_seed = -1  # >=0: keys from this seed, for tests only; the ledger and report say NOT PRIVATE

    config.query_net = ConfigDict()  # the query function: a classifier of the public set
    config.query_net.workdir = ""  # another run's workdir whose query network is reused; "" = train one here
    config.query_net.model = "resnet50"  # a zoo classifier or package.module:Class
    config.query_net.kwargs = ConfigDict()  # extra arguments of that model
    config.query_net.epochs = 100.0  # passes over the public set
    config.query_net.batch_size = 2048  # images per step
    config.query_net.learning_rate = 0.01  # peak, decayed by a cosine to 0
    config.query_net.momentum = 0.9  # of SGD (Nesterov)
    config.query_net.weight_decay = 5e-4  # L2, on kernels only
    config.query_net.label_smoothing = 0.0  # share of the target spread over all classes
    config.query_net.flip = True  # random left-right flips
    config.query_net.shift = 0  # random shifts of up to so many pixels

    config.query = ConfigDict()  # the semantic query (mechanism 1)
    config.query.k1 = 1  # semantics counted per image; L2 sensitivity sqrt(k1)
    config.query.noise_multiplier = 50.0  # sigma1: noise of standard deviation sigma1 * sqrt(k1) on every count

    config.class_histogram = ConfigDict()  # draw classes as often as the sensitive set does, up to noise
    config.class_histogram.enabled = False  # True = a mechanism of its own, paid from the budget; False costs nothing
    config.class_histogram.noise_multiplier = 50.0  # standard deviation of the noise on every class count

    config.selection = ConfigDict()  # which public images pre-train the generator
    config.selection.method = (
        "semantic"  # semantic | random (blind) | all (labels folded to classes) | unlabelled (all) | none
    )
    config.selection.k2 = 1  # semantics picked for each sensitive class
    config.selection.ratio = 0.0  # >0: k2 = ratio * public classes / sensitive classes, in place of k2
    config.selection.assignment = "sequential"  # sequential (the paper's) | optimal (largest total noisy count)
    config.selection.seed = 0  # random: of the draw of semantics

    config.generator = "diffusion"  # diffusion | gan | package.module:Class of a generators.base.Generator

    config.model = ConfigDict()  # the denoiser
    config.model.name = "unet"  # a zoo denoiser or package.module:Class
    config.model.kwargs = ConfigDict()  # arguments of that model
    config.model.kwargs.nf = 32  # channels of the first level
    config.model.kwargs.ch_mult = (2, 4)  # channels of each level, as multiples of nf
    config.model.kwargs.attn = (16,)  # resolutions with self-attention
    config.model.kwargs.num_blocks = 2  # residual blocks per level

    config.diffusion = ConfigDict()  # EDM (Karras et al. 2022)
    config.diffusion.p_mean = -1.2  # mean of ln(sigma) in training
    config.diffusion.p_std = 1.2  # its standard deviation
    config.diffusion.sigma_data = 3**-0.5  # standard deviation of pixels in [-1, 1]
    config.diffusion.sigma_min = 0.002  # lowest noise level of sampling
    config.diffusion.sigma_max = 80.0  # highest
    config.diffusion.rho = 7.0  # how the levels between crowd towards the lowest
    config.diffusion.label_dropout = 0.1  # how often the label is hidden, for guidance

    config.gan = ConfigDict()  # generator=gan: BigGAN's networks, small; the discriminator alone sees images
    config.gan.noise = 60  # numbers that an image is made from
    config.gan.embedding = 128  # numbers in the embedding of a label
    config.gan.generator_width = 240  # channels of the generator's blocks
    config.gan.discriminator_width = 160  # channels of the discriminator's blocks
    config.gan.attention = 2  # the generator's block, from 1, after which there is self-attention; 0 = none
    config.gan.discriminator_steps = 5  # of the discriminator for each step of the generator
    config.gan.pretrain_rate = 5e-4  # the discriminator's learning rate in pre-training and on noisy means, of Adam
    config.gan.finetune_rate = 5e-4  # and in fine-tuning
    config.gan.generator_rate = 0.4  # the generator's learning rate, as a multiple of the discriminator's
    config.gan.batch_size = 4096  # images made for a step of the generator
    config.gan.microbatch = 256  # of these, at once on a device

    config.pretrain = ConfigDict()  # public: no privacy cost
    config.pretrain.steps = 5000  # 0 = no pre-training (DPDM)
    config.pretrain.batch_size = 1024  # images per step
    config.pretrain.learning_rate = 3e-4  # of Adam
    config.pretrain.ema = 0.999  # decay of the averaged parameters
    config.pretrain.flip = True  # random left-right flips
    config.pretrain.shift = 0  # random shifts of up to so many pixels
    config.pretrain.perturbation = 0.0  # gamma: gradients at weights moved so far towards more loss (RPGen); 0 = off
    config.pretrain.perturbation_norm = "layer"  # layer (gamma times the norm of each) | global (gamma in all; RPGen's)

    config.warmup = ConfigDict()  # DP-FETA: pre-train, after public images if any, on noisy means of random subsets
    config.warmup.enabled = False  # True = a mechanism of its own, paid from the budget; False costs nothing
    config.warmup.means = 5  # noisy means of each class
    config.warmup.subset_size = 6000  # images drawn at a time, in expectation: of each class those make one mean
    config.warmup.noise_multiplier = 5.0  # noise on every sum of a subset, relative to the largest norm of an image
    config.warmup.downscale = 2  # means have sides so many times smaller, for less noise, and are enlarged again
    config.warmup.steps = 2000  # of training on the means: post-processing, free of privacy cost
    config.warmup.learning_rate = 3e-4  # of Adam; all else as config.pretrain has it

    config.finetune = ConfigDict()  # DP-SGD (mechanism 2)
    config.finetune.enabled = True  # False = stop at the pre-trained generator
    config.finetune.batch_size = 4096  # expected size of a Poisson batch
    config.finetune.epochs = 150.0  # steps = epochs * N / batch_size
    config.finetune.steps = 0  # >0: so many steps, in place of epochs
    config.finetune.noise_multiplicity = (
        8  # K: noise draws, or a GAN's generated images, per example (Dockhorn et al. 2023)
    )
    config.finetune.learning_rate = 3e-4  # of Adam
    config.finetune.ema = 0.999  # decay of the averaged parameters
    config.finetune.flip = False  # random left-right flips
    config.finetune.shift = 0  # random shifts of up to so many pixels
    config.finetune.trainable = ".*"  # regular expression of the parameters to fine-tune, e.g. ".*attention.*|label/.*"
    config.finetune.lora_rank = 0  # >0: train low-rank changes of the chosen kernels (LoRA) in place of the kernels
    config.finetune.lora_scale = 1.0  # LoRA: how many times the product of its factors a change is (alpha / r)
    config.finetune.block = 0  # steps reserved in the ledger at a time; 0 = a tenth of all

    config.clipping = ConfigDict()  # of per-example gradients
    config.clipping.norm = 1e-3  # C: the largest L2 norm of one example's gradient
    config.clipping.method = "auto"  # auto | bookkeeping (what auto takes) | vmap (the reference, slow)
    config.clipping.microbatch = 0  # examples whose gradients a device holds at once; 0 = as its memory allows

    config.sample = ConfigDict()  # synthesis: post-processing, free of privacy cost
    config.sample.n = 60000  # images to make
    config.sample.batch_size = 1000  # images made at once
    config.sample.sampler = "ddim"  # ddim (deterministic) | heun (stochastic with churn)
    config.sample.steps = 50  # noise levels
    config.sample.guidance = 0.0  # classifier-free guidance; 0 = off
    config.sample.s_churn = 0.0  # heun: amount of noise added and removed again, over all steps (Karras et al. 2022)
    config.sample.s_min = 0.05  # heun: churn only above this noise level
    config.sample.s_max = 50.0  # heun: and below this one
    config.sample.s_noise = 1.003  # heun: standard deviation of the added noise, relative to what the level asks for
    config.sample.class_weights = ()  # relative frequency of each class; () = equal, or as config.class_histogram finds

    config.sampler_choice = ConfigDict()  # choose one setting of config.sample by a look at the sensitive images
    config.sampler_choice.enabled = False  # True = a mechanism of its own, paid from the budget; False costs nothing
    config.sampler_choice.setting = "guidance"  # guidance | steps | s_churn: the one of config.sample to be chosen
    config.sampler_choice.candidates = (0.0, 1.0, 2.0)  # the m values to choose from (public)
    config.sampler_choice.n = 5000  # images drawn with each, from which a classifier learns
    config.sampler_choice.classifier = "cnn"  # a zoo classifier or package.module:Class
    config.sampler_choice.classifier_steps = 2000  # its training steps
    config.sampler_choice.noise_multiplier = 50.0  # noise of about 25 sqrt(m) on how many images each gets right

    config.evaluate = ConfigDict()  # non-private: results stay in internal/
    config.evaluate.enabled = True  # False = make the release without looking at real images again
    config.evaluate.extractors = ("query",)  # networks for FID and its kin: query | inception | package.module:function
    config.evaluate.inception_weights = ""  # inception: its weights, pytorch-fid's .pth or .safetensors
    config.evaluate.max_images = 10000  # of each set, for FID and its kin
    config.evaluate.measures = ()  # more measures, each package.module:NAME of a metrics.measure.Measure
    config.evaluate.neighbours = 4  # k of improved precision and recall
    config.evaluate.pretrained = False  # True = also measure what the generator drew before fine-tuning
    config.evaluate.classifiers = ("cnn",)  # learn from synthetic, then from real images; zoo or package.module:Class
    config.evaluate.classifier_seeds = 1  # how often each is trained; more than one give a mean and a spread
    config.evaluate.classifier_kwargs = ConfigDict({name: {} for name in CLASSIFIERS})  # extra arguments of each model
    config.evaluate.recipe = "quick"  # quick (the four settings below) | benchmark | benchmark_cifar (DPImageBench's)
    config.evaluate.classifier_steps = 2000  # training steps of the classifier
    config.evaluate.classifier_batch_size = 128  # images per step
    config.evaluate.classifier_learning_rate = 2e-3  # peak of AdamW, decayed by a cosine
    config.evaluate.classifier_shift = 1  # random shifts of up to so many pixels

    config.report = ConfigDict()  # release/report.html
    config.report.public_neighbours = True  # show public images beside samples; False if they may not be republished

    config.audit = ConfigDict()  # `privimage audit`: what it claims of fine-tuning, and how it looks for a refutation
    config.audit.claimed_epsilon = 3.0  # what the audit tries to refute; its own noise is solved for it
    config.audit.claimed_delta = 1e-5  # of that claim
    config.audit.canaries = 1000  # of each kind, white-box and black-box; twice as many records are all the data
    config.audit.guesses = 200  # of each kind, half "included" and half "excluded"; not to be chosen by the scores
    config.audit.confidence = 0.95  # of each bound
    config.audit.batch_size = 1000  # expected size of a Poisson batch
    config.audit.steps = 20  # of DP-SGD

    config.extra_stages = ()  # stages from elsewhere, each package.module:NAME of a privimage_jax.run.stage.Stage
    config.extra = ConfigDict()  # their settings, under any names

    config.log = ConfigDict()
    config.log.every = 50  # steps between two lines of metrics
    config.log.sample_every = 500  # steps between two grids of samples; 0 = none
    config.log.checkpoint_every = 200  # steps between two checkpoints
    config.log.keep = 2  # checkpoints kept

    config.lock()
    models = (config.model.kwargs, config.query_net.kwargs, config.evaluate.classifier_kwargs)
    for free in (*models, config.data.kwargs, config.public.kwargs, config.extra):
        free.unlock()  # what a model or stage from elsewhere takes is its own business
    return config
