package pocketrank

import java.io.Closeable
import java.io.File

/** What runs graphs. The core knows no engine; `engine-ort` and `engine-tflite` each bring one. */
interface Engine {
    /** As messages call it. */
    val name: String

    /** Of a graph's file, with its dot. */
    val suffix: String

    /**
     * Opens a graph by its path.
     *
     * @param constants tensors that the graph names and leaves to whoever opens it; they stay as they are.
     * @throws BadBundle the engine cannot read it.
     */
    fun open(path: File, constants: List<Tensor> = emptyList()): Graph
}

/**
 * One opened graph.
 *
 * @property isFixed its shapes are those of the manifest, with B = 1 (TFLite); otherwise every axis may have any size.
 */
interface Graph : Closeable {
    val isFixed: Boolean

    /**
     * Ties the graph to buffers, so that runs make no garbage.
     *
     * @param inputs by name, all that it has; what they hold at the time of a run counts.
     * @param outputs that are written in place; the others a run gives back.
     * @throws BadBundle the graph does not take these.
     */
    fun bind(inputs: List<Tensor>, outputs: List<Tensor> = emptyList()): Run
}

/** A graph tied to buffers. Not for two threads at once. */
interface Run : Closeable {
    /** Runs it; gives back the outputs that are not tied to buffers, by name. */
    fun run(): Map<String, Tensor>
}

/** Opens a graph of a bundle. */
internal fun Engine.open(bundle: Bundle, name: String, constants: List<Tensor> = emptyList()): Graph {
    val path = File(bundle.folder, name + suffix)
    if (path.name !in bundle.manifest.files) {
        throw BadBundle("$path: missing, engine ${this.name} needs it; take another engine or export the bundle again")
    }
    return open(path, constants)
}
